from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flatfix.errors import UserError
from flatfix.evaluation.metrics import compute
from flatfix.evaluation.threshold import Rule, check, choose, decide, review_band
from flatfix.inference.decision import Decision

NO_RULE: dict[str, Any] = {
    "calibrate": False,
    "threshold": None,
    "recall_at_least": None,
    "miss_cost": None,
    "review_fraction": None,
}


def columns(scores: NDArray[np.float64], positive: int) -> NDArray[np.float64]:
    return np.column_stack([1 - scores, scores] if positive == 1 else [scores, 1 - scores])


def situations() -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64], int]]:
    """Labels with both classes, probabilities with and without ties, zeros and ones, and the positive class."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        num, positive = int(rng.integers(2, 80)), int(rng.integers(2))
        labels = rng.permutation(np.concatenate([[0, 1], rng.random(num - 2) < rng.random()])).astype(np.int64)
        scores = 1 / (1 + np.exp(-rng.normal(2 * (labels == positive) - 1.5, 1.5)))
        if seed % 3 == 1:
            scores = scores.round(1)
        if seed % 3 == 2:
            scores = np.clip(2 * scores - 0.5, 0, 1)
        yield labels, columns(scores, positive), positive


def outcome(
    labels: NDArray[np.int64], calibrated: NDArray[np.float64], positive: int, threshold: float
) -> tuple[float, int, int]:
    """Recall, false alarms and misses."""
    decided = Decision(positive=positive, threshold=threshold).predict(calibrated)
    is_positive, is_found = labels == positive, decided == positive
    return (
        float(is_found[is_positive].mean()),
        int((is_found & ~is_positive).sum()),
        int((~is_found & is_positive).sum()),
    )


def every_threshold(calibrated: NDArray[np.float64], positive: int) -> list[float]:
    return [*calibrated[:, positive], 2.0]


@pytest.mark.parametrize("recall", [0.05, 0.5, 0.8, 0.95, 1.0])
def test_recall_is_reached_and_no_higher_threshold_reaches_it(recall: float) -> None:
    for labels, calibrated, positive in situations():
        threshold = choose(labels, calibrated, positive, Rule(recall_at_least=recall))
        reached = outcome(labels, calibrated, positive, threshold)
        assert reached[0] >= recall
        above = [other for other in every_threshold(calibrated, positive) if other > threshold]
        others = [outcome(labels, calibrated, positive, other) for other in above]
        assert all(other[0] < recall or other == reached for other in others)
        assert compute(labels, calibrated, positive, Decision(1.0, positive, threshold).predict(calibrated))[
            "recall"
        ] == pytest.approx(reached[0])


@pytest.mark.parametrize("cost", [0.01, 0.5, 1.0, 3.0, 100.0])
def test_no_threshold_costs_less_than_the_cheapest(cost: float) -> None:
    for labels, calibrated, positive in situations():
        threshold = choose(labels, calibrated, positive, Rule(miss_cost=cost))
        _, alarms, misses = outcome(labels, calibrated, positive, threshold)
        for other in every_threshold(calibrated, positive):
            _, other_alarms, other_misses = outcome(labels, calibrated, positive, other)
            assert alarms + cost * misses <= other_alarms + cost * other_misses + 1e-9


@pytest.mark.parametrize("option", ["recall_at_least", "miss_cost"])
def test_asking_for_more_never_raises_the_threshold_and_order_does_not_matter(option: str) -> None:
    values = {"recall_at_least": [0.1, 0.5, 0.9, 1.0], "miss_cost": [0.1, 0.9, 2.0, 30.0]}[option]
    for labels, calibrated, positive in situations():
        thresholds = [choose(labels, calibrated, positive, Rule(**{option: value})) for value in values]
        assert thresholds == sorted(thresholds, reverse=True)
        order = np.random.default_rng(0).permutation(len(labels))
        shuffled = [choose(labels[order], calibrated[order], positive, Rule(**{option: value})) for value in values]
        assert shuffled == thresholds


@pytest.mark.parametrize("rule", [Rule(recall_at_least=0.9), Rule(miss_cost=2.0)])
def test_threshold_and_band_are_as_far_from_the_scores_as_they_can_be(rule: Rule) -> None:
    for labels, calibrated, positive in situations():
        threshold = choose(labels, calibrated, positive, rule)
        band = review_band(calibrated, positive, threshold, 0.3)
        ends = np.concatenate([[0.0], np.unique(calibrated[:, positive]), [1.0]])
        for value in (threshold, *band):
            at = np.searchsorted(ends, value)
            # On a score only where there is nothing between it and the end of the scale.
            if value not in ends:
                assert value == pytest.approx((ends[at - 1] + ends[at]) / 2)
            else:
                assert value in (0.0, 1.0)


def test_threshold_keeps_its_decisions_under_the_noise_of_another_runtime() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=300)
    scores = rng.permutation(np.arange(1, 301) / 301)
    for rule in (Rule(recall_at_least=0.95), Rule(miss_cost=5.0)):
        threshold = choose(labels, columns(scores, 1), 1, rule)
        noisy = scores + rng.uniform(-1e-3, 1e-3, size=300)
        np.testing.assert_array_equal(noisy >= threshold, scores >= threshold)


@pytest.mark.parametrize("score", [0.0, 0.3, 1.0])
def test_constant_scores_are_all_positive_or_all_negative(score: float) -> None:
    labels, calibrated = np.array([0, 1, 1]), columns(np.full(3, score), 1)
    all_found = choose(labels, calibrated, 1, Rule(recall_at_least=0.5))
    none_found = choose(labels, calibrated, 1, Rule(miss_cost=0.1))
    assert Decision(positive=1, threshold=all_found).predict(calibrated).tolist() == [1, 1, 1]
    assert Decision(positive=1, threshold=none_found).predict(calibrated).tolist() == [0, 0, 0]


def test_scores_that_are_neighbouring_floats_are_told_apart() -> None:
    scores = np.array([0.3, np.nextafter(0.3, 1)])
    threshold = choose(np.array([0, 1]), columns(scores, 1), 1, Rule(recall_at_least=1.0))
    assert (scores >= threshold).tolist() == [False, True]


def test_of_equally_cheap_thresholds_the_one_nearest_the_theory_is_chosen() -> None:
    labels, scores = np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.7, 0.9])
    # A cut above 0.1 costs an alarm, one above 0.7 a miss; at equal costs theory says 0.5, nearer to 0.8 than to 0.15.
    assert choose(labels, columns(scores, 1), 1, Rule(miss_cost=1.0)) == pytest.approx(0.8)
    assert choose(labels, columns(scores, 1), 1, Rule(miss_cost=1.01)) == pytest.approx(0.15)


def test_believable_probabilities_bring_the_cheapest_threshold_near_the_theory() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(50_000)
    labels = (rng.random(50_000) < scores).astype(np.int64)
    assert choose(labels, columns(scores, 1), 1, Rule(miss_cost=4.0)) == pytest.approx(0.2, abs=0.03)


def test_recall_on_other_pictures_is_near_the_one_asked_for() -> None:
    recalls = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], 200)
        scores = 1 / (1 + np.exp(-rng.normal(2 * labels - 1, 1.2, size=(2, 400))))
        threshold = choose(labels, columns(scores[0], 1), 1, Rule(recall_at_least=0.95))
        recalls.append(outcome(labels, columns(scores[1], 1), 1, threshold)[0])
    assert np.mean(recalls) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.25, 0.9, 0.999])
def test_review_band_holds_the_asked_part_around_the_threshold(fraction: float) -> None:
    for labels, calibrated, positive in situations():
        threshold = choose(labels, calibrated, positive, Rule(recall_at_least=0.9))
        low, high = review_band(calibrated, positive, threshold, fraction)
        assert low <= threshold <= high
        scores = calibrated[:, positive]
        is_in = Decision(positive=positive, threshold=threshold, review=(low, high)).needs_review(calibrated)
        asked = max(1, round(fraction * len(labels)))
        assert is_in.sum() >= asked
        # Without the pictures that share the outermost scores it would hold too few.
        outermost = (scores == scores[is_in].min()) | (scores == scores[is_in].max())
        assert (is_in & ~outermost).sum() < asked
        if len(np.unique(scores)) == len(scores):
            assert is_in.sum() == asked
            num_above = int((is_in & (scores >= threshold)).sum())
            fits = asked // 2 <= (scores >= threshold).sum() and asked - asked // 2 <= (scores < threshold).sum()
            assert num_above == asked // 2 or not fits


def test_larger_review_bands_hold_the_smaller() -> None:
    for _, calibrated, positive in situations():
        bands = [review_band(calibrated, positive, 0.4, fraction) for fraction in (0.01, 0.1, 0.3, 0.6, 0.99)]
        assert all(wide[0] <= narrow[0] and narrow[1] <= wide[1] for narrow, wide in pairwise(bands))


def test_review_band_reaches_to_the_threshold_where_no_score_lies_beyond_it() -> None:
    low, high = review_band(columns(np.array([0.1, 0.2, 0.3]), 1), 1, threshold=0.9, fraction=0.5)
    assert (low, high) == (pytest.approx(0.15), 0.9)


@pytest.mark.parametrize("positive", [0, 1])
def test_decision_is_calibrated_chosen_and_said_in_words(positive: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=400)
    logits = 4 * rng.normal(2 * (labels == positive) - 1, 1.2)
    probabilities = columns(1 / (1 + np.exp(-logits)), positive).astype(np.float32)
    options = {**NO_RULE, "calibrate": True, "recall_at_least": 0.95, "review_fraction": 0.1}
    decision = decide(labels, probabilities, positive, **options)
    assert decision.temperature > 1.5
    calibrated = decision.calibrate(probabilities)
    assert outcome(labels, calibrated, positive, decision.threshold)[0] >= 0.95
    assert decision.needs_review(calibrated).sum() == 40
    assert decision.rule == "recall of at least 0.95 on validation"
    plain = decision.to_dict()
    assert [type(plain[name]) for name in ("temperature", "threshold")] == [float, float]
    assert [type(end) for end in plain["review"]] == [float, float]


def test_no_rule_is_the_most_probable_class() -> None:
    probabilities = columns(np.array([0.1, 0.49, 0.51, 0.9]), 1)
    decision = decide(np.array([0, 0, 1, 1]), probabilities, 1, **NO_RULE)
    assert decision == Decision(positive=1)


def test_threshold_that_is_set_stays_as_it_is() -> None:
    decision = decide(np.zeros(2, np.int64), columns(np.array([0.1, 0.9]), 1), 1, **{**NO_RULE, "threshold": 0.123})
    assert (decision.threshold, decision.rule) == (0.123, "set by decision.threshold")


def test_more_than_two_classes_are_calibrated_only() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), size=100)
    decision = decide(rng.integers(3, size=100), probabilities, None, **{**NO_RULE, "calibrate": True})
    assert decision == Decision(temperature=decision.temperature)
    assert decision.temperature > 2


def test_two_rules_are_refused() -> None:
    with pytest.raises(UserError, match=r"decision\.recall_at_least=0\.9 and decision\.miss_cost=5: each chooses"):
        check({**NO_RULE, "recall_at_least": 0.9, "miss_cost": 5.0})


@pytest.mark.parametrize("option", ["threshold", "recall_at_least", "miss_cost", "review_fraction"])
def test_rule_for_more_than_two_classes_is_refused(option: str) -> None:
    options = {**NO_RULE, option: 0.5}
    check(options)
    check(options, num_classes=2)
    with pytest.raises(UserError, match=rf"decision\.{option}: means nothing with 3 classes"):
        check(options, num_classes=3)
    with pytest.raises(UserError, match=rf"decision\.{option}"):
        decide(np.arange(3), np.eye(3), None, **options)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("option", ["recall_at_least", "miss_cost"])
def test_rule_that_lacks_pictures_of_a_class_is_refused(option: str, label: int) -> None:
    options = {**NO_RULE, option: 0.5, "review_fraction": 0.5}
    with pytest.raises(UserError, match=rf"decision\.{option}: validation needs pictures of both classes"):
        decide(np.full(4, label), columns(np.linspace(0, 1, 4), 1), 1, **options)


def test_diverged_model_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"nan for 1 of 2 validation pictures.*optimizer\.lr"):
        decide(np.array([0, 1]), np.array([[0.5, 0.5], [np.nan, np.nan]]), 1, **NO_RULE)
