"""Find pictures that look alike, without comparing each with every other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flatfix.inference.decode import resize

MAX_BITS = 3  # of 128, by which two hashes of pictures that look alike may differ
ENOUGH_PIXELS = 64  # a side, for a thumbnail of 9: to average all of a large picture takes as long as to decode it
NUM_NEIGHBOURS = 16  # that a picture is compared with, for each quarter of its hash


def difference_hash(pixels: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return two 64-bit hashes of `[H, W, 3]` uint8 pixels, `[2]`: where it gets brighter to the right, and downwards.

    Scaling, compression and brightness change few of the bits. Source: N. Krawetz, "Kind of Like That" (dHash), 2013;
    the gradient downwards is added here because pictures of one production line share much of the other one.
    """
    step = max(1, min(pixels.shape[:2]) // ENOUGH_PIXELS)
    grey = resize(pixels[::step, ::step], 9, "squash").sum(axis=2, dtype=np.int16)
    to_the_right, downwards = grey[:8, 1:] > grey[:8, :-1], grey[1:, :8] > grey[:-1, :8]
    return np.packbits(np.stack([to_the_right, downwards])).view(np.uint64)


def alike(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the pairs of rows whose hashes `[N, 2]` differ in at most `MAX_BITS`, `[P, 2]`, the most alike first.

    Of four quarters one is the same in both hashes of such a pair, so that neighbours in the order of a quarter are
    all there is to compare. Where more than `NUM_NEIGHBOURS` share a quarter, the pairs that lie further apart in
    that order are missed: many pictures alike are still found, if not every pair of them. A picture of one colour
    has no gradient, and is like nothing.
    """
    rows = np.flatnonzero(hashes.any(axis=1))
    quarters = hashes[rows].view(np.uint32)
    found = [np.empty((0, 2), np.int64)]
    for quarter in range(4):
        order = np.lexsort(np.roll(quarters, -1 - quarter, axis=1).T)  # by this quarter, and then by the others
        key, sorted_hashes = quarters[order, quarter], hashes[rows[order]]
        first = np.arange(len(order))
        for step in range(1, NUM_NEIGHBOURS + 1):
            first = first[first + step < len(order)]
            first = first[key[first] == key[first + step]]
            near = first[_num_bits(sorted_hashes[first] ^ sorted_hashes[first + step]) <= MAX_BITS]
            found.append(np.sort(rows[order[np.stack([near, near + step], axis=1)]], axis=1))
    pairs = np.unique(np.concatenate(found), axis=0)
    return pairs[np.argsort(_num_bits(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]), kind="stable")]


def _num_bits(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = np.bitwise_count(words).sum(axis=1, dtype=np.int64)
    return counts
