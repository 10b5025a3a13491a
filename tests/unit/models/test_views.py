from __future__ import annotations

import numpy as np
import pytest
import torch

from flatfix.models.views import NUM_VIEWS, views


@pytest.mark.parametrize("tta", NUM_VIEWS)
def test_every_view_is_another_and_the_first_is_the_picture(tta: str) -> None:
    images = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).view(2, 4, 4, 3)
    seen = views(images, tta)
    assert torch.equal(seen[0], images)
    assert len({view.contiguous().numpy().tobytes() for view in seen}) == len(seen) == NUM_VIEWS[tta]


def test_dihedral_views_are_all_turns_and_mirrors() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    wanted = {np.rot90(each, turns).tobytes() for each in (image, image[:, ::-1]) for turns in range(4)}
    seen = views(torch.from_numpy(image)[None], "dihedral")
    assert {view.contiguous().numpy().tobytes() for view in seen} == wanted


def test_the_mirror_image_is_left_to_right() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    assert np.array_equal(views(torch.from_numpy(image)[None], "flip")[1][0].numpy(), image[:, ::-1])
