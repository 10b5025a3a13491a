"""Show which part of a picture a model looked at, by hiding one part after another.

This is occlusion (Zeiler & Fergus 2014, arXiv 1311.2901): it asks nothing of a model but answers, so it explains what
is served, whatever runs it and in whatever precision.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatfix.inference.decode import Box, fit
from flatfix.inference.predictor import Predictor
from flatfix.serving.engine import Engine

GRID = 8
"""Cells a side of a map."""

# A patch hides 2 x 2 cells and moves by one: a quarter of the picture's side is enough to hide what is looked at, and
# each cell but those at the edge is hidden four times, which smooths the map. That makes 49 patches, and 50 pictures.
PATCH = 2

# An urgent picture that comes meanwhile waits for as many to be computed.
NUM_AT_ONCE = 2


class Heat(NamedTuple):
    """Say where a model looked.

    Attributes:
        label: class that is explained, the one that was decided, as an index into the card's.
        probability: of that class, when nothing is hidden.
        grid: `[G, G]`, top to bottom and left to right: how much a cell speaks for the class, from 0, where hiding it
            does not lower the odds, to 1, for the cell that lowers them most; 0 everywhere if none does.
        drop: what hiding a single patch takes from the probability at most: how far the map is to be believed.
    """

    label: int
    probability: float
    grid: NDArray[np.float64]
    drop: float


async def explain(engine: Engine, predictor: Predictor, pixels: NDArray[np.uint8]) -> Heat:
    """Explain what a predictor decides of a picture `[H, W, 3] uint8`, whenever the engine has nothing urgent.

    The map is one of log-odds: they still tell the parts of a picture apart whose probability is nearly 1.
    """
    patches = _patches(len(pixels))
    colour = np.rint(pixels.mean(axis=(0, 1))).astype(np.uint8)
    logits: list[NDArray[np.float32]] = []
    probabilities: list[NDArray[np.float64]] = []
    label = 0
    for start in range(0, 1 + len(patches), NUM_AT_ONCE):
        images = np.repeat(pixels[None], min(NUM_AT_ONCE, 1 + len(patches) - start), axis=0)
        for number, image in enumerate(images, start):
            if number:  # the first is the picture as it is
                image[patches[number - 1]] = colour
        said = await engine.answer(predictor, images, is_urgent=False)
        if not start:
            label = int(said.labels[0])
        logits.append(said.logits)
        probabilities.append(said.probabilities[:, label])
    odds, probability = _log_odds(np.concatenate(logits), label), np.concatenate(probabilities)
    drop = max(0.0, float(probability[0] - probability[1:].min()))
    return Heat(label, float(probability[0]), _grid(odds[0] - odds[1:]), drop)


def shown_box(width: float, height: float, size: int, rule: str) -> Box:
    """Return where the grid lies on a picture: left, top, right and bottom as fractions of its width and height.

    Args:
        width: of the picture, upright, in any unit.
        height: likewise, in the same unit.
        size: pixels a side of what the model sees.
        rule: of resizing. With `crop` the grid covers a part of the picture; with `pad` it reaches beyond it, below 0
            and above 1.
    """
    (left, top, right, bottom), inner = fit((0, 0, width, height), size, rule)
    # A cell of the grid may lie on what `pad` adds: as many pixels before the picture, and the rest behind it.
    before = [(size - side) // 2 for side in inner]
    after = [size - side - edge for side, edge in zip(inner, before, strict=True)]
    return (
        left / width - before[0] / inner[0],
        top / height - before[1] / inner[1],
        right / width + after[0] / inner[0],
        bottom / height + after[1] / inner[1],
    )


def _patches(size: int) -> list[tuple[slice, slice]]:
    """Return the rows and columns that each patch hides of a square picture, row by row."""
    edges = np.rint(np.linspace(0, size, GRID + 1)).astype(int)
    spans = [slice(edges[cell], edges[cell + PATCH]) for cell in range(GRID - PATCH + 1)]
    return [(rows, columns) for rows in spans for columns in spans]


def _log_odds(logits: NDArray[np.float32], label: int) -> NDArray[np.float64]:
    """Return by how much the logit of a class exceeds those of all others together."""
    precise = logits.astype(np.float64)
    others = np.delete(precise, label, axis=1)
    highest = others.max(axis=1)
    together = highest + np.log(np.exp(others - highest[:, None]).sum(axis=1))
    difference: NDArray[np.float64] = precise[:, label] - together
    return difference


def _grid(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average over the patches that hid a cell, and scale to 0 to 1."""
    num_steps = GRID - PATCH + 1
    sums, counts = np.zeros((GRID, GRID)), np.zeros((GRID, GRID))
    for (row, column), loss in np.ndenumerate(losses.reshape(num_steps, num_steps)):
        cells = slice(row, row + PATCH), slice(column, column + PATCH)
        sums[cells] += loss
        counts[cells] += 1
    heat = np.maximum(sums / counts, 0)
    highest = heat.max()
    return heat / highest if highest > 0 else heat
