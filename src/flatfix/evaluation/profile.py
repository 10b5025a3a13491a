"""What a model saw and said before it was served: what drift is measured against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_ROWS = 2_000  # more would find shifts too small to matter
MAX_FEATURES = 512  # rows; their tests compare every pair
CHUNK = 32  # pictures in memory at a time
SEED = 0

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue: ITU-R BT.601


def profile(
    pictures: NDArray[np.uint8], probabilities: NDArray[Any], features: NDArray[Any]
) -> dict[str, NDArray[np.float32]]:
    """Describe pictures and what a model said, each by a sample that is the same every time.

    Two-sample tests on what the classifier itself says find most shifts (Rabanser et al. 2019, arXiv 1810.11953).

    Args:
        pictures: `[N, H, W, 3]` uint8, which may be memory-mapped.
        probabilities: `[M, C]`, calibrated; of these pictures, or of more.
        features: `[K, D]`; likewise.

    Returns:
        `profile_probabilities` `[≤ 2,000, C]`, `profile_features` `[≤ 512, D]`, and of at most 2,000 pictures
        `profile_brightness`, `profile_contrast` and `profile_sharpness`, see `picture_statistics`.
    """
    rows = _sample(len(pictures), MAX_ROWS)
    chunks = [picture_statistics(pictures[rows[start : start + CHUNK]]) for start in range(0, len(rows), CHUNK)]
    return {
        "profile_probabilities": np.asarray(probabilities[_sample(len(probabilities), MAX_ROWS)], np.float32),
        "profile_features": np.asarray(features[_sample(len(features), MAX_FEATURES)], np.float32),
        **{f"profile_{name}": np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]},
    }


def picture_statistics(pictures: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Measure each picture: what another lamp, lens or camera shows in first.

    Args:
        pictures: `[N, H, W, 3]` uint8, sides of 3 pixels and more.

    Returns:
        By name, `[N]` each, of the luma from 0 (black) to 1 (white): `brightness`, its mean; `contrast`, its standard
        deviation (Peli 1990, doi:10.1364/JOSAA.7.002032); `sharpness`, the variance of its Laplacian (Pech-Pacheco et
        al. 2000, doi:10.1109/ICPR.2000.903548).
    """
    luma = pictures @ (LUMA / 255)
    around = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    laplacian = around - 4 * luma[:, 1:-1, 1:-1]
    return {
        "brightness": luma.mean(axis=(1, 2)),
        "contrast": luma.std(axis=(1, 2)),
        "sharpness": laplacian.var(axis=(1, 2)),
    }


def _sample(num: int, limit: int) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(SEED).permutation(num)[:limit])
