from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flatfix.evaluation.figures import contact_sheet, save
from tests.helpers.answers import HOSTILE_NAMES

CAPTION = (*HOSTILE_NAMES[:3], "ordner/übung with a long name 00001.png")


@pytest.mark.parametrize(("num", "height", "width"), [(1, 32, 32), (7, 20, 40), (24, 128, 96)])
def test_every_picture_is_on_the_sheet(tmp_path: Path, num: int, height: int, width: int) -> None:
    colours = np.random.default_rng(0).integers(30, 220, (num, 1, 1, 3), np.uint8)
    pictures = np.broadcast_to(colours, (num, height, width, 3)).copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(contact_sheet(pictures, [CAPTION] * num, "The worst"), tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).reshape(-1, 3)
    for colour in colours[:, 0, 0]:
        assert (pixels == colour).all(axis=1).sum() > 1000


def test_captions_are_shortened_to_the_width_of_a_picture() -> None:
    figure = contact_sheet(np.zeros((2, 8, 8, 3), np.uint8), [("cat", "→ dog", "99 %", "x" * 60)] * 2, "The worst")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == [f"cat\n→ dog\n99 %\n{'x' * 9}…{'x' * 9}"] * 2
    assert figure.get_suptitle() == "The worst"


def test_pictures_need_no_captions() -> None:
    assert not contact_sheet(np.zeros((2, 8, 8, 3), np.uint8), [], "Augmented").axes[0].texts
