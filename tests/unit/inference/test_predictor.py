from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.special import softmax as softmax_of_scipy

from flatfix.inference.decision import softmax
from flatfix.inference.package import REFERENCE, DamagedPackageError, Reference, save_reference, sha256_of
from flatfix.inference.predictor import NUM_AT_ONCE, Predictor
from flatfix.inference.runtime import available
from tests.helpers.packages import permits, pictures, with_card


@pytest.fixture(scope="module")
def predictor(package):
    return Predictor(package, "onnxruntime")


def with_reference(package, folder, logits):
    """Copy a package that was given other logits when it was made."""
    other = with_card(package, folder)
    save_reference(folder / REFERENCE, Reference(package.reference().images, logits), {})
    files = {**package.card.files, REFERENCE: sha256_of(folder / REFERENCE)}
    return with_card(replace(other, card=package.card), folder.with_name("sealed"), files=files, permits=permits())


def test_the_decision_of_the_card_is_applied(predictor, package):
    said, decision = predictor.predict(pictures(40)), package.card.decision
    expected = softmax_of_scipy(said.logits.astype(np.float64) / decision.temperature, axis=1)

    np.testing.assert_allclose(said.probabilities, expected, rtol=1e-6)
    np.testing.assert_array_equal(said.labels, (said.probabilities[:, 1] >= decision.threshold).astype(int))
    low, high = decision.review
    np.testing.assert_array_equal(
        said.needs_review, (said.probabilities[:, 1] >= low) & (said.probabilities[:, 1] <= high)
    )
    assert 0 < said.labels.sum() < 40
    assert 0 < said.needs_review.sum() < 40
    assert said.features.shape == (40, package.card.num_features)
    assert (said.probabilities.dtype, said.labels.dtype, said.needs_review.dtype) == (np.float64, np.int64, np.bool_)


def test_many_pictures_are_answered_as_each_alone(predictor):
    images = pictures(2 * NUM_AT_ONCE + 3)
    said = predictor.predict(images)
    alone = [predictor.predict(images[row : row + 1]) for row in range(0, len(images), 10)]

    np.testing.assert_allclose(said.logits[::10], np.concatenate([one.logits for one in alone]), atol=1e-6)
    np.testing.assert_allclose(said.features[::10], np.concatenate([one.features for one in alone]), atol=1e-6)


def test_no_pictures_have_no_answers(predictor, package):
    said = predictor.predict(np.empty((0, 32, 32, 3), np.uint8))

    assert said.logits.shape == said.probabilities.shape == (0, 2)
    assert said.features.shape == (0, package.card.num_features)
    assert said.labels.shape == said.needs_review.shape == (0,)


def test_pictures_may_lie_anyhow(predictor, tmp_path):
    images = pictures(12)
    np.save(tmp_path / "pictures.npy", images)
    expected = predictor.predict(images)
    mapped = np.load(tmp_path / "pictures.npy", mmap_mode="r")

    for step in (1, 3, -1):
        np.testing.assert_allclose(predictor.predict(mapped[::step]).logits, expected.logits[::step], atol=1e-6)
    turned = np.ascontiguousarray(images.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(predictor.predict(turned).logits, expected.logits)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 32, 32, 3), np.float32),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((2, 3, 32, 32), np.uint8),
        np.zeros((2, 64, 64, 3), np.uint8),
    ],
    ids=["another type", "one picture", "channels first", "another size"],
)
def test_pictures_of_another_form_are_refused(predictor, images):
    with pytest.raises(ValueError, match=r"need pictures \[N, 32, 32, 3\] uint8, got"):
        predictor.predict(images)


def test_threads_get_their_own_answers(predictor):
    batches = [pictures(1 + seed % 5, seed=seed) for seed in range(30)]
    expected = [predictor.predict(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for said, alone in zip(pool.map(predictor.predict, batches), expected, strict=True):
            for field in fields(said):
                np.testing.assert_array_equal(getattr(said, field.name), getattr(alone, field.name))


@pytest.mark.parametrize("pair", available(), ids=str)
def test_a_package_proves_itself_with_every_pair(package, tmp_path, pair):
    permitted = with_card(package, tmp_path / "package", permits=permits())
    predictor = Predictor(permitted, *pair)

    predictor.prove()
    assert (predictor.runtime, predictor.precision, predictor.reason) == (*pair, "as asked for")


@pytest.mark.parametrize("pair", available(), ids=str)
@pytest.mark.parametrize("wrong", [0.05, np.nan])
def test_a_model_that_answers_otherwise_than_when_it_was_made_is_refused(package, tmp_path, pair, wrong):
    logits = package.reference().logits.copy()
    logits[7, 1] += wrong
    changed = with_reference(package, tmp_path / "package", logits)

    with pytest.raises(DamagedPackageError, match=f"1 of the 32 reference pictures .* by {' '.join(pair)} as they"):
        Predictor(changed, *pair).prove()


def test_reduced_precision_may_differ_by_what_its_permit_measured(package, tmp_path):
    logits = package.reference().logits + np.float32(0.01)
    changed = with_reference(package, tmp_path / "package", logits)

    with pytest.raises(DamagedPackageError):
        Predictor(changed, "onnxruntime").prove()
    if ("openvino", "bf16") in available():
        Predictor(changed, "openvino", "bf16").prove()


def test_softmax_stands_the_largest_logits():
    logits = np.array([[1e30, -1e30, 0], [1000, 1001, 999], [0, 0, 0]], np.float32)

    np.testing.assert_allclose(softmax(logits), softmax_of_scipy(logits.astype(np.float64), axis=1), rtol=1e-12)
