from __future__ import annotations

import asyncio

import numpy as np
import pytest
from PIL import Image

from flatfix.inference.decision import Decision
from flatfix.inference.decode import load_with_sides
from flatfix.inference.predictor import Predictions
from flatfix.serving.engine import Engine
from flatfix.serving.explain import GRID, NUM_AT_ONCE, explain, shown_box
from flatfix.serving.metrics import Metrics
from tests.helpers.images import encode


class Spots:
    """A model that says class 1 the surer the brighter the brightest pixel is, with a threshold of its own."""

    decision = Decision(temperature=2.0, positive=1, threshold=0.3)

    def __init__(self, sureness: float = 0.05) -> None:
        self.sureness = sureness
        self.batch_sizes: list[int] = []

    def predict(self, images: np.ndarray) -> Predictions:
        self.batch_sizes.append(len(images))
        evidence = self.sureness * (images.max(axis=(1, 2, 3)).astype(np.float32) - 120)
        logits = np.stack([np.zeros_like(evidence), evidence], axis=1)
        return Predictions.of(logits, logits, self.decision)


def heat_of(model, pixels):
    async def main():
        engine = Engine(batch_size=16, wait_s=0, metrics=Metrics())
        engine.start(asyncio.get_running_loop())
        try:
            return await asyncio.wait_for(explain(engine, model, pixels), 10)
        finally:
            await asyncio.to_thread(engine.stop, 10)

    return asyncio.run(main())


def spotted(row, column, size=64):
    pixels = np.full((size, size, 3), 40, np.uint8)
    pixels[row : row + 3, column : column + 3] = 220
    return pixels


@pytest.mark.parametrize("sureness", [0.05, 1.0])  # 0.99 and a probability that float64 cannot tell from 1
@pytest.mark.parametrize(("row", "column"), [(2, 2), (26, 43), (58, 10), (60, 60)])
def test_the_spot_that_decides_is_where_the_map_is_hottest(row, column, sureness):
    heat = heat_of(Spots(sureness), spotted(row, column))

    cell = GRID * row // 64, GRID * column // 64
    assert heat.grid.shape == (GRID, GRID)
    assert heat.grid[cell] == heat.grid.max() == 1
    assert heat.grid.min() == 0
    far = np.abs(np.indices((GRID, GRID)) - np.array(cell)[:, None, None]).max(axis=0) > 2
    assert (heat.grid[far] == 0).all()


def test_what_is_explained_is_the_class_that_was_decided_and_its_probability():
    heat = heat_of(Spots(), spotted(26, 26))

    sure, unsure = (1 / (1 + np.exp(-0.05 * (shade - 120) / 2)) for shade in (220, 41))
    assert heat.label == 1
    assert heat.probability == pytest.approx(sure)
    assert heat.drop == pytest.approx(sure - unsure, abs=0.02)


def test_a_picture_whose_parts_do_not_matter_is_explained_by_nothing():
    heat = heat_of(Spots(), np.full((64, 64, 3), 200, np.uint8))

    assert heat.label == 1
    assert (heat.grid == 0).all()
    assert heat.drop == 0


def test_fifty_pictures_are_asked_few_at_a_time():
    model = Spots()

    heat_of(model, spotted(9, 9))

    assert sum(model.batch_sizes) == 50
    assert max(model.batch_sizes) <= NUM_AT_ONCE


@pytest.mark.parametrize("size", [9, 30, 33])
def test_a_size_that_the_grid_does_not_divide_is_explained_too(size):
    heat = heat_of(Spots(), spotted(size // 2, size // 2, size))

    assert heat.grid[GRID // 2, GRID // 2] == heat.grid.max() == 1


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("rule", ["squash", "crop", "pad"])
@pytest.mark.parametrize("shape", [(300, 500), (501, 333), (40, 61), (25, 25)])
def test_the_box_says_where_a_pixel_of_the_model_lies_on_the_upright_picture(shape, rule, orientation):
    height, width = shape
    y, x = np.mgrid[0:height, 0:width].astype(float)
    # Where the picture is drawn, its red says how far to the right a pixel lies, its green how far down.
    across, down = (40 + 200 * (x + 0.5) / width), (40 + 200 * (y + 0.5) / height)
    upright = np.rint(np.stack([across, down, np.full_like(x, 255)], axis=2)).astype(np.uint8)
    stored = np.ascontiguousarray(np.rot90(upright)) if orientation == 6 else upright
    options = {"exif": exif(orientation), "quality": 98, "subsampling": 0}

    pixels, sides = load_with_sides(encode(stored, "JPEG", **options), 48, rule)
    left, top, right, bottom = shown_box(*sides, 48, rule)

    row, column = np.nonzero(pixels[..., 2] > 250)  # not on what was added at the sides
    inner = (abs(row - 23.5) < 22) & (abs(column - 23.5) < 22)
    row, column = row[inner], column[inner]
    seen = (pixels[row, column, :2].astype(float) - 40) / 200
    at = np.stack([left + (right - left) * (column + 0.5) / 48, top + (bottom - top) * (row + 0.5) / 48], axis=1)
    assert len(row) > 900
    assert np.abs(at - seen).max() < 0.02


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags
