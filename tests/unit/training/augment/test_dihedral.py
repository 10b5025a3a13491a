from __future__ import annotations

import numpy as np
import torch

from flatfix.training.augment import Dihedral
from tests.helpers.draws import chance, copies, counted, drawn, key, pictures


def test_the_eight_symmetries_of_the_square_come_equally_often() -> None:
    image = pictures(1, 5, 5)
    turned = [np.rot90(image.numpy(), quarters, axes=(1, 2)) for quarters in range(4)]
    symmetries = [key(torch.from_numpy(side.copy())) for one in turned for side in (one, one[:, :, ::-1])]
    assert len(set(symmetries)) == 8
    assert chance(counted(drawn(Dihedral(), copies(image, 8000), 0)), dict.fromkeys(symmetries, 1)) > 0.01
