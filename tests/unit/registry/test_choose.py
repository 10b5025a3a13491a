from __future__ import annotations

import math

import pytest

from flatfix.errors import UserError
from flatfix.registry.choose import metric_named, pick
from flatfix.registry.versions import Version


def version(number: int, digest: str = "d1", dataset_version: str = "v1", **validation: float) -> Version:
    tags = {"dataset_name": "tires", "dataset_version": dataset_version, "dataset_digest": digest}
    metrics = {f"val/{metric}": repr(value) for metric, value in validation.items()}
    return Version("tires", number, f"run {number}", 1000 * number, {**tags, **metrics}, f"file:///{number}")


def numbers(versions: tuple[Version, ...]) -> list[int]:
    return [each.number for each in versions]


@pytest.mark.parametrize(
    ("words", "metric"),
    [
        (("F1", "f1", "F1_Score", "f1-score", "F1Score", "val/f1", "Validation F1", "best/f1"), "f1"),
        (("Loss", "Validation Loss", "validation_loss", " val/loss "), "loss"),
        (("AUROC", "auroc"), "auroc"),
        (("Accuracy", "ACCURACY", "accuracy_score"), "accuracy"),
        (("top5_accuracy", "Top5 Accuracy"), "top5_accuracy"),
    ],
)
def test_many_words_mean_one_metric(words: tuple[str, ...], metric: str) -> None:
    assert {metric_named(word, ["top5_accuracy", "epoch"]) for word in words} == {metric}


def test_an_unknown_metric_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"metric=acuracy: no such validation metric\. Valid: loss, .*'accuracy'\?"):
        metric_named("acuracy")


def test_a_logged_metric_whose_name_tells_no_direction_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"metric=epoch: .* Valid: loss, accuracy, precision, recall, f1, auroc, brier_error\."
    ):
        metric_named("epoch", ["epoch", "brier_error"])


def test_the_test_split_never_chooses() -> None:
    with pytest.raises(UserError, match="the test split judges and never chooses"):
        metric_named("test/f1")


def test_the_best_is_picked_in_the_direction_of_the_metric_and_all_are_ranked() -> None:
    versions = [version(1, loss=0.3, f1=0.9), version(2, loss=0.1, f1=0.8), version(3, loss=0.2, f1=0.7)]
    assert numbers(pick(versions, "F1").ranked) == [1, 2, 3]
    by_loss = pick(versions, "Loss")
    assert numbers(by_loss.ranked) == [2, 3, 1]
    assert (by_loss.best.number, by_loss.metric, by_loss.value) == (2, "loss", 0.1)
    errors = [version(1, brier_error=0.2), version(2, brier_error=0.3)]
    assert pick(errors, "brier_error").best.number == 1


@pytest.mark.parametrize("metric", ["f1", "loss"])
def test_of_equals_the_newest_is_picked(metric: str) -> None:
    versions = [version(number, **{metric: 0.5}) for number in (3, 4, 11)]
    assert numbers(pick(versions, metric).ranked) == [11, 4, 3]


@pytest.mark.parametrize("metric", ["f1", "loss"])
def test_nan_and_a_missing_metric_never_win(metric: str) -> None:
    versions = [version(1, **{metric: 0.5}), version(2, **{metric: math.nan}), version(3)]
    assert numbers(pick(versions, metric).ranked) == [1, 2, 3]
    with pytest.raises(UserError, match=f"no version has a validation {metric}"):
        pick(versions[1:], metric)


def test_only_versions_of_the_newest_ones_dataset_content_are_compared() -> None:
    versions = [version(1, "d1", f1=0.99), version(2, "d2", "v2", f1=0.7), version(3, "d2", "v2", f1=0.6)]
    picked = pick(versions, "f1")
    assert (numbers(picked.ranked), numbers(picked.left_out)) == ([2, 3], [1])


def test_a_dataset_version_chooses_among_what_was_trained_on_it() -> None:
    versions = [version(1, "d1", "v1", f1=0.9), version(2, "d0", "v1", f1=0.8), version(3, "d2", "v2", f1=0.7)]
    picked = pick(versions, "f1", dataset_version="v1")
    assert (numbers(picked.ranked), numbers(picked.left_out)) == ([2], [1, 3])
    with pytest.raises(UserError, match=r"dataset\.version=v3: none of .* on v1, v2\."):
        pick(versions, "f1", dataset_version="v3")
