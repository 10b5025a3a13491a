from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from flatfix.data.likeness import MAX_BITS, NUM_NEIGHBOURS, alike, difference_hash
from flatfix.data.sources.tires import TiresSource
from flatfix.inference.decode import decode


@pytest.fixture(scope="module")
def tires():
    source = TiresSource(num_pictures=60, size=224, seed=0)
    return [decode(source.read(record)) for record in source.records()]


def num_bits(one, other):
    return int(np.bitwise_count(difference_hash(one) ^ difference_hash(other)).sum())


def pairs_alike(hashes):
    return np.concatenate([np.empty((0, 2), np.int64), *alike(hashes)])


def encoded_badly(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=40)
    return decode(file.getvalue())


@pytest.mark.parametrize(
    "copy",
    [
        encoded_badly,
        lambda pixels: np.asarray(Image.fromarray(pixels).resize((180, 180), Image.Resampling.LANCZOS)),
        lambda pixels: (pixels * 0.9).astype(np.uint8),
    ],
    ids=["encoded badly", "smaller", "darker"],
)
def test_a_copy_that_was_encoded_scaled_or_exposed_anew_is_alike(tires, copy):
    found = sum(num_bits(pixels, copy(pixels)) <= MAX_BITS for pixels in tires)
    assert found >= 0.9 * len(tires)


def test_pictures_of_the_same_kind_are_not_alike(tires):
    assert len(pairs_alike(np.stack([difference_hash(pixels) for pixels in tires]))) == 0


def test_pairs_are_those_that_a_comparison_of_all_finds_each_once():
    rng = np.random.default_rng(0)
    hashes = rng.integers(1, 2**63, (200, 2)).astype(np.uint64)
    for _ in range(300):  # chains of pictures, each of which differs from another in a few bits
        one, other = rng.integers(0, 200, 2)
        hashes[one] = hashes[other]
        for bit in rng.integers(0, 128, rng.integers(0, 5)):
            hashes[one, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
        if len(np.unique(hashes, axis=0)) < 120:
            break
    distances = np.bitwise_count(hashes[:, None] ^ hashes).sum(axis=2)
    expected = {(a, b) for a, b in np.argwhere(distances <= MAX_BITS).tolist() if a < b}

    pairs = pairs_alike(hashes)

    assert len(expected) > 30
    assert sorted(map(tuple, pairs.tolist())) == sorted(expected)


def test_a_crowd_of_pictures_alike_gives_pairs_in_proportion_to_its_size():
    hashes = np.full((5000, 2), 5, dtype=np.uint64)

    pairs = pairs_alike(hashes)

    assert len(np.unique(pairs, axis=0)) == len(pairs)
    assert 5000 - NUM_NEIGHBOURS <= len(np.unique(pairs)) <= 5000
    assert len(pairs) <= 4 * NUM_NEIGHBOURS * 5000


def test_a_large_crowd_of_pictures_alike_takes_little_memory():
    num = 100_000
    hashes = np.full((num, 2), 5, dtype=np.uint64)
    tracemalloc.start()

    num_pairs = sum(len(pairs) for pairs in alike(hashes))

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_pairs >= NUM_NEIGHBOURS * (num - NUM_NEIGHBOURS)
    assert peak_bytes < 200 * num


def test_pictures_of_one_colour_and_no_pictures_are_like_nothing():
    hashes = np.stack([difference_hash(np.full((20, 30, 3), level, dtype=np.uint8)) for level in (0, 90, 255)])
    assert len(pairs_alike(hashes)) == len(pairs_alike(hashes[:0])) == 0


def test_the_smallest_pictures_have_a_hash():
    assert difference_hash(np.arange(3, dtype=np.uint8).reshape(1, 1, 3)).shape == (2,)
