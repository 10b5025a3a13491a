from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flatfix.evaluation.profile import picture_statistics, profile


def draws(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def grey(levels: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.repeat(levels[None, :, :, None], 3, axis=3).astype(np.uint8)


def test_statistics_are_those_of_the_luma() -> None:
    picture = draws(1, 9, 7, 3)
    luma = picture[0] @ np.array([0.299, 0.587, 0.114]) / 255
    laplacian = [
        luma[y - 1, x] + luma[y + 1, x] + luma[y, x - 1] + luma[y, x + 1] - 4 * luma[y, x]
        for y in range(1, 8)
        for x in range(1, 6)
    ]
    found = picture_statistics(picture)
    assert found["brightness"][0] == pytest.approx(luma.mean(), rel=1e-5)
    assert found["contrast"][0] == pytest.approx(luma.std(), rel=1e-5)
    assert found["sharpness"][0] == pytest.approx(np.var(laplacian), rel=1e-5)


def test_a_darker_a_flatter_and_a_blurred_picture_each_show_in_their_own_statistic() -> None:
    x = np.arange(64.0)
    stripes = 128 + 60 * np.sign(np.sin(x / 2)) * np.ones((64, 1))
    blurred = sum(np.roll(stripes, shift, axis=1) for shift in range(-2, 3)) / 5
    sharp, dark, flat, soft = (
        {name: values[0] for name, values in picture_statistics(grey(levels)).items()}
        for levels in (stripes, stripes - 60, 128 + (stripes - 128) / 4, blurred)
    )
    assert dark["brightness"] < sharp["brightness"] - 0.2
    assert (dark["contrast"], dark["sharpness"]) == pytest.approx((sharp["contrast"], sharp["sharpness"]))
    assert flat["contrast"] == pytest.approx(sharp["contrast"] / 4, rel=0.02)
    assert flat["brightness"] == pytest.approx(sharp["brightness"], abs=0.01)
    assert soft["sharpness"] < sharp["sharpness"] / 4
    assert soft["contrast"] > sharp["contrast"] / 2


def test_black_and_white_are_the_ends_of_brightness() -> None:
    found = picture_statistics(np.stack([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)]))
    assert found["brightness"] == pytest.approx([0, 1])
    assert found["contrast"] == pytest.approx([0, 0], abs=1e-6)


def test_few_pictures_are_kept_whole() -> None:
    pictures, probabilities, features = draws(40, 8, 8, 3), np.random.default_rng(1).random((50, 2)), np.ones((45, 5))
    found = profile(pictures, probabilities, features)
    assert {name: values.shape for name, values in found.items()} == {
        "profile_probabilities": (50, 2),
        "profile_features": (45, 5),
        "profile_brightness": (40,),
        "profile_contrast": (40,),
        "profile_sharpness": (40,),
    }
    assert {values.dtype for values in found.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(found["profile_probabilities"], probabilities.astype(np.float32))
    for name, values in picture_statistics(pictures).items():
        np.testing.assert_array_equal(found[f"profile_{name}"], values)


def test_many_pictures_are_sampled_over_their_whole_range_and_always_alike(tmp_path: Path) -> None:
    rows = np.linspace(0, 1, 5_000)
    pictures = np.broadcast_to((255 * rows).astype(np.uint8)[:, None, None, None], (5_000, 4, 4, 3))
    np.save(tmp_path / "pictures.npy", pictures)
    found = profile(np.load(tmp_path / "pictures.npy", mmap_mode="r"), rows[:, None], rows[:, None])
    assert [len(found[f"profile_{name}"]) for name in ("probabilities", "features", "brightness")] == [2000, 512, 2000]
    for values in found["profile_probabilities"], found["profile_features"], found["profile_brightness"]:
        assert values.mean() == pytest.approx(0.5, abs=0.05)
        assert values.std() == pytest.approx(rows.std(), abs=0.02)
        assert len(np.unique(values)) > 200
    again = profile(pictures, rows[:, None], rows[:, None])
    assert all(np.array_equal(values, again[name]) for name, values in found.items())
