"""Test-time augmentation: the views of a picture that an answer averages."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

NUM_VIEWS: Mapping[str, int] = {"none": 1, "flip": 2, "dihedral": 8}
"""By the choices of `model.tta`."""


def views(images: Tensor, tta: str) -> list[Tensor]:
    """Return square pictures `[N, S, S, C]` as they are, and after them their other views, each `[N, S, S, C]`.

    `flip` adds the mirror image, left to right; `dihedral` all that turning by quarters and mirroring make of a square.
    """
    if tta == "none":
        return [images]
    mirrored = [images, images.flip(2)]
    if tta == "flip":
        return mirrored
    both_ways = [*mirrored, *(view.flip(1) for view in mirrored)]
    return [*both_ways, *(view.transpose(1, 2) for view in both_ways)]
