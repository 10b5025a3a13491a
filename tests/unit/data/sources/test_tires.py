from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from flatfix.data.sources.tires import DEFECTS, TiresSource, draw
from flatfix.errors import UserError


def pixels(source: TiresSource) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(io.BytesIO(source.read(record)))) for record in source.records()])


def noise(picture: NDArray[np.float64]) -> float:
    red, green, _ = picture[picture.max(axis=2) < 230].T
    return float((red - red @ green / (green @ green) * green).std())


def test_records_are_named_balanced_and_show_every_kind_of_defect() -> None:
    records = TiresSource(num_pictures=80).records()
    assert [record.id for record in records[:4]] == [
        "tire-000000-ok",
        "tire-000001-cut",
        "tire-000002-ok",
        "tire-000003-crack",
    ]
    assert Counter(record.label for record in records) == {"ok": 40, "defective": 40}
    kinds = Counter(record.id.split("-", 2)[2] for record in records if record.label == "defective")
    assert kinds == dict.fromkeys(DEFECTS, 10)
    assert {record.extension for record in records} == {"jpg"}
    assert all(record.split is record.group is record.target is None for record in records)


def test_classes_are_in_label_order() -> None:
    assert TiresSource().classes == ("ok", "defective")


def test_a_picture_is_the_same_in_any_order_and_in_a_larger_set() -> None:
    small, large = TiresSource(num_pictures=16), TiresSource(num_pictures=40)
    forward = [small.read(record) for record in small.records()]
    backward = [large.read(record) for record in reversed(large.records()[:16])]
    assert forward == backward[::-1]
    assert len(set(forward)) == 16


def test_another_seed_draws_other_pictures() -> None:
    pictures = {seed: pixels(TiresSource(num_pictures=4, seed=seed)) for seed in (0, 1)}
    assert all(np.abs(a.astype(int) - b).mean() > 10 for a, b in zip(pictures[0], pictures[1], strict=True))


@pytest.mark.parametrize("size", [32, 64, 97])
def test_pictures_are_rgb_of_the_declared_size(size: int) -> None:
    source = TiresSource(num_pictures=8, size=size)
    for record in source.records():
        with Image.open(io.BytesIO(source.read(record))) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (size, size))


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_visible_and_leaves_brightness_and_noise_alone(defect: str) -> None:
    for index in range(40):
        sound, defective = (draw(0, index, 64, kind).astype(float) for kind in (None, defect))
        assert 0.005 < (np.abs(sound - defective).mean(axis=2) > 20).mean() < 0.5
        assert defective.mean() == pytest.approx(sound.mean(), abs=1)
        assert noise(defective) == pytest.approx(noise(sound), rel=0.1)


def test_a_linear_classifier_on_pixels_stays_under_75_percent() -> None:
    num_pictures, num_train = 500, 300
    source = TiresSource(num_pictures)
    inputs = pixels(source).reshape(num_pictures, -1).astype(np.float32)
    labels = np.array([source.classes.index(record.label) for record in source.records()])
    order = np.random.default_rng(0).permutation(num_pictures)
    train, test = order[:num_train], order[num_train:]
    # A full PCA only turns the axes: the classifier is the same with 300 weights as with 12,288, and sooner fitted.
    axes = make_pipeline(StandardScaler(), PCA()).fit(inputs[train])
    for strength in (1e-5, 1e-4, 1e-3, 1e-2, 1):
        classifier = LogisticRegression(C=strength).fit(axes.transform(inputs[train]), labels[train])
        assert classifier.score(axes.transform(inputs[test]), labels[test]) < 0.75


def test_describe_says_what_determines_the_pictures() -> None:
    assert TiresSource(num_pictures=10, size=48, seed=7).describe() == {
        "kind": "tires",
        "num_pictures": 10,
        "size": 48,
        "seed": 7,
    }


@pytest.mark.parametrize(("option", "value"), [("num_pictures", 1), ("size", 16), ("seed", -1), ("size", 64.5)])
def test_an_option_out_of_range_is_named(option: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"dataset\.source\.{option}={value}"):
        TiresSource(**{option: value})
