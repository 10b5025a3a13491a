from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flatfix.data.cache import Examples, decoded
from flatfix.data.encoded import EncodedPictures
from flatfix.data.publish import publish
from flatfix.data.splits import SplitRule
from flatfix.data.store import LocalStore
from flatfix.data.version import open_version
from flatfix.models.classifier import Classifier
from flatfix.training.augment import Inspection
from flatfix.training.features import cached_features
from tests.helpers.images import MemorySource, records
from tests.helpers.models import make_classifier


def pictures(count: int = 10) -> Examples:
    rng = np.random.default_rng(0)
    pixels = rng.integers(20, 220, (count, 1, 1, 3)) + rng.integers(0, 30, (count, 32, 32, 3))
    return Examples(
        pixels.astype(np.uint8), np.arange(count, dtype=np.int64) % 3, [f"picture-{n}" for n in range(count)], "train"
    )


def features(classifier: Classifier, cache: Path, **changes: Any) -> Examples:
    settings: dict[str, Any] = {
        "digest": "d" * 64,
        "cache_dir": cache,
        "device": torch.device("cpu"),
        "precision": "32-true",
    }
    examples = changes.pop("examples", pictures())
    return cached_features(classifier, examples, **{**settings, **changes})


def frozen(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    classifier = make_classifier()
    classifier.freeze_backbone()
    return classifier


def test_the_head_gives_the_same_logits_on_features_as_the_classifier_on_pictures(tmp_path: Path) -> None:
    classifier = frozen()
    cached = features(classifier, tmp_path)
    assert (cached.inputs.shape, cached.inputs.dtype) == ((10, 256), np.float32)
    with torch.inference_mode():
        whole = classifier.eval()(torch.from_numpy(pictures().inputs)).logits
        torch.testing.assert_close(classifier.head(torch.from_numpy(cached.inputs)), whole)


def test_labels_ids_and_soft_labels_stay_with_their_pictures(tmp_path: Path) -> None:
    examples = replace(pictures(), targets=np.eye(3, dtype=np.float32)[pictures().labels])
    cached = features(frozen(), tmp_path, examples=examples)
    assert cached.targets is examples.targets
    assert cached.labels is examples.labels
    assert (cached.ids, cached.split) == (examples.ids, "train")


def test_features_are_computed_once_and_again_for_whatever_they_depend_on(tmp_path: Path) -> None:
    def num_files(classifier: Classifier, **changes: Any) -> int:
        features(classifier, tmp_path, **changes)
        return len(list((tmp_path / "features").iterdir()))

    assert num_files(frozen()) == 1
    assert num_files(frozen(seed=1)) == 2
    assert num_files(frozen(), digest="e" * 64) == 3
    assert num_files(frozen(), precision="bf16-mixed") == 4
    assert num_files(frozen(), examples=pictures().select(np.arange(5))) == 5
    views: dict[str, Any] = {"augment": Inspection(), "num_views": 2, "recipe": {"rotation": 30}}
    assert num_files(frozen(), **views) == 6
    assert num_files(frozen(), **views, seed=1) == 7
    assert num_files(frozen(), **{**views, "recipe": {"rotation": 10}}) == 8


def test_only_answers_average_views(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = make_classifier(tta="dihedral")
    classifier.freeze_backbone()
    seen, answered = (
        features(classifier, tmp_path, examples=replace(pictures(), split=split)).inputs for split in ("train", "val")
    )
    images = torch.from_numpy(pictures().inputs)
    with torch.inference_mode():
        np.testing.assert_allclose(seen, classifier.train().features(images), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(answered, classifier.eval().features(images), rtol=1e-4, atol=1e-5)
    assert np.abs(seen - answered).max() > 1e-3

    plain = make_classifier(tta="none")
    plain.load_state_dict(classifier.state_dict())
    plain.freeze_backbone()
    for split in ("train", "val"):
        features(plain, tmp_path, examples=replace(pictures(), split=split))
    assert len(list((tmp_path / "features").glob("train-*"))) == 1  # the same for both
    assert len(list((tmp_path / "features").glob("val-*"))) == 2


def test_views_differ_and_keep_the_order_of_the_pictures(tmp_path: Path) -> None:
    classifier = frozen()
    plain = features(classifier, tmp_path).inputs
    views = features(classifier, tmp_path, augment=Inspection(brightness=0.05, contrast=0.05), num_views=3).inputs
    assert views.shape == (10, 3, 256)
    assert not np.allclose(views[:, 0], views[:, 1])
    distances = np.linalg.norm(views.mean(axis=1)[:, None] - plain[None], axis=2)
    assert (distances.argmin(axis=1) == np.arange(10)).mean() > 0.8


def test_features_are_the_same_whether_pictures_are_decoded_or_not_yet(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    publish(MemorySource(records(100)), store, name="pets", version="v1", rule=SplitRule(), shard_bytes=50_000)
    version = open_version(store, "pets", "v1")
    options: dict[str, Any] = {"image_size": 32, "resize": "squash", "cache_dir": tmp_path / "pictures"}
    streamed = decoded(version, "train", **options, gigabytes=0)
    assert isinstance(streamed.inputs, EncodedPictures)
    classifier = frozen()
    for views in ({}, {"augment": Inspection(), "num_views": 2}):
        ours, theirs = (
            features(classifier, tmp_path / name, examples=examples, **views).inputs
            for name, examples in (("streamed", streamed), ("decoded", decoded(version, "train", **options)))
        )
        np.testing.assert_array_equal(ours, theirs)
