"""Find pictures that look alike, without comparing each with every other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from flatfix.inference.decode import resize

MAX_BITS = 3  # of 128, by which two hashes of pictures that look alike may differ
ENOUGH_PIXELS = 64  # a side, for a thumbnail of 9: to average all of a large picture takes as long as to decode it
NUM_NEIGHBOURS = 16  # that a picture is compared with, for each quarter of its hash
NUM_COMPARED = 1 << 16  # pairs at a time: a crowd of pictures alike has many more than fit into memory


def difference_hash(pixels: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return two 64-bit hashes of `[H, W, 3]` uint8 pixels, `[2]`: where it gets brighter to the right, and downwards.

    Scaling, compression and brightness change few of the bits. Source: N. Krawetz, "Kind of Like That" (dHash), 2013;
    the gradient downwards is added here because pictures of one production line share much of the other one.
    """
    step = max(1, min(pixels.shape[:2]) // ENOUGH_PIXELS)
    grey = resize(pixels[::step, ::step], 9, "squash").sum(axis=2, dtype=np.int16)
    to_the_right, downwards = grey[:8, 1:] > grey[:8, :-1], grey[1:, :8] > grey[:-1, :8]
    return np.packbits(np.stack([to_the_right, downwards])).view(np.uint64)


def alike(hashes: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Yield the pairs of rows whose hashes `[N, 2]` differ in at most `MAX_BITS`: some `[P, 2]` at a time, each once.

    Of four quarters one is the same in both hashes of such a pair, so that neighbours in the order of a quarter are
    all there is to compare. Where more than `NUM_NEIGHBOURS` share a quarter, the pairs that lie further apart in
    that order are missed: many pictures alike are still found, if not every pair of them. A picture of one colour
    has no gradient, and is like nothing.
    """
    quarters = hashes.view(np.uint32)
    has_gradient = (hashes[:, 0] | hashes[:, 1]) != 0
    orders: list[NDArray[np.int32]] = []  # for each quarter, the place of each row
    for quarter in range(4):
        order = np.lexsort([quarters[:, (quarter + other) % 4] for other in (1, 2, 3, 4)])  # by this one, then others
        key = quarters[order, quarter]
        first = np.flatnonzero(has_gradient[order])
        for step in range(1, NUM_NEIGHBOURS + 1):
            first = first[first + step < len(order)]
            first = first[key[first] == key[first + step]]
            for start in range(0, len(first), NUM_COMPARED):
                some = first[start : start + NUM_COMPARED]
                pairs = np.sort(order[np.stack([some, some + step], axis=1)], axis=1)
                pairs = pairs[num_bits(hashes, pairs) <= MAX_BITS]
                one, other = pairs.T
                is_known = np.zeros(len(pairs), bool)
                for earlier, place in enumerate(orders):
                    is_near = np.abs(place[one] - place[other]) <= NUM_NEIGHBOURS
                    is_known |= is_near & (quarters[one, earlier] == quarters[other, earlier])
                yield pairs[~is_known]
        orders.append(np.empty(len(order), np.int32))
        orders[-1][order] = np.arange(len(order))


def num_bits(hashes: NDArray[np.uint64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the bits in which the hashes of each pair `[P, 2]` differ."""
    counts: NDArray[np.int64] = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]).sum(axis=1, dtype=np.int64)
    return counts
