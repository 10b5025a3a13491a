from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from flatfix.evaluation.thumbnails import SIDE, data_uri, shrink
from tests.helpers.images import colours


def decoded(uri: str) -> Image.Image:
    header, _, content = uri.partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
    assert header == f"data:image/{str(image.format).lower()};base64"
    return image


@pytest.mark.parametrize(
    ("height", "width", "shape"), [(224, 224, (128, 128)), (512, 256, (128, 64)), (100, 400, (32, 128))]
)
def test_large_pictures_shrink_to_the_longest_side_and_keep_their_form(
    height: int, width: int, shape: tuple[int, int]
) -> None:
    pictures = np.stack([colours(height, width, seed) for seed in range(3)])
    small = shrink(pictures)
    assert small.shape == (3, *shape, 3)
    np.testing.assert_allclose(small.mean(axis=(1, 2)), pictures.mean(axis=(1, 2)), atol=1)


@pytest.mark.parametrize("side", [8, 32, SIDE])
def test_small_pictures_stay_as_they_are(side: int) -> None:
    pictures = np.stack([colours(side, side)])
    assert shrink(pictures) is pictures


def test_a_memory_map_that_cannot_be_written_is_read(tmp_path) -> None:
    np.save(tmp_path / "pictures.npy", np.stack([colours(200, 200, seed) for seed in range(3)]))
    pictures = np.load(tmp_path / "pictures.npy", mmap_mode="r")
    assert shrink(pictures[[2, 0]]).shape == (2, 128, 128, 3)


def test_drawn_pictures_are_png_and_photographs_jpeg() -> None:
    drawn = np.zeros((96, 96, 3), np.uint8)
    drawn[40:60, 40:60] = 255
    assert decoded(data_uri(drawn)).format == "PNG"
    noise = np.clip(colours(96, 96) + np.random.default_rng(0).normal(0, 4, (96, 96, 3)), 0, 255).astype(np.uint8)
    assert decoded(data_uri(noise)).format == "JPEG"


def test_a_picture_inside_a_page_is_small() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)  # the worst case
    assert len(data_uri(noise)) < 30_000
    np.testing.assert_array_equal(np.asarray(decoded(data_uri(np.zeros((4, 4, 3), np.uint8)))), 0)
