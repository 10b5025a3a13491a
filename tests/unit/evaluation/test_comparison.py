from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from flatfix.errors import UserError
from flatfix.evaluation.answers import Answers
from flatfix.evaluation.comparison import BOOTSTRAP, MCNEMAR, class_drops, compare
from flatfix.evaluation.metrics import METRICS, compute
from flatfix.evaluation.predictions import Predictions
from flatfix.inference.decision import Decision
from tests.helpers.answers import answers, answers_of, decision, said

NUM_DRAWS = 1000
BY_BOOTSTRAP = [metric for metric in METRICS if metric != "accuracy"]


def counted_pair(both: int, won: int, lost: int, neither: int) -> tuple[Answers, Answers]:
    """Answers of a challenger and an incumbent to pictures of one class, of which so many are right with each."""
    challenger = [0.1] * (both + won) + [0.9] * (lost + neither)
    incumbent = [0.1] * both + [0.9] * won + [0.1] * lost + [0.9] * neither
    labels = [0] * len(challenger)
    return answers_of(labels, challenger), answers_of(labels, incumbent)


def drawn_pair(share_won: float, share_lost: float, seed: int, num_pictures: int = 500) -> tuple[Answers, Answers]:
    """Answers of two models that err on both classes alike and are as sure of a mistake as of a right answer.

    Accuracy, precision, recall, F1 and AUROC are then all the same number in the long run, and so are the differences.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=num_pictures)
    both, won, lost, neither = 0, 1, 2, 3
    shares = [0.8, share_won, share_lost, 0.2 - share_won - share_lost]
    outcome = rng.choice([both, won, lost, neither], p=shares, size=num_pictures)
    confidence = rng.uniform(0.5, 1, size=num_pictures)
    pair = []
    for right in ((both, won), (both, lost)):
        is_right = np.isin(outcome, right)
        scores = np.where(is_right == (labels == 1), confidence, 1 - confidence)
        pair.append(answers_of(labels, scores, threshold=0.5))
    return pair[0], pair[1]


def rival(num_classes: int, num_pictures: int = 400) -> Answers:
    """Answers of a model that is less often right than that of `answers`, to the same pictures."""
    table = said(num_classes, num_pictures)
    blurred = 0.5 * table.probabilities + 0.5 * np.roll(table.probabilities, 1, axis=0)
    return Answers.of(dataclasses.replace(table, probabilities=blurred), decision(num_classes))


def measured(metric: str, model: Answers, rows: np.ndarray) -> float:
    return compute(model.labels[rows], model.calibrated[rows], model.decision.positive, model.predictions[rows])[metric]


def share_refused(metric: str, points_worse: float, num_resamples: int) -> float:
    """Part of the draws in which a challenger is refused that is so much worse; 12 % of the pictures are discordant."""
    won, lost = 0.06 - points_worse / 2, 0.06 + points_worse / 2
    refused = [
        compare(metric, *drawn_pair(won, lost, seed), num_resamples=num_resamples, seed=seed).is_worse
        for seed in range(NUM_DRAWS)
    ]
    return float(np.mean(refused))


def assert_honest(metric: str, num_resamples: int) -> None:
    allowance = binom.ppf(0.99, NUM_DRAWS, 0.05) / NUM_DRAWS
    assert share_refused(metric, 0.0, num_resamples) <= allowance
    assert share_refused(metric, 0.05, num_resamples) >= 0.8


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
def test_gate_refuses_equal_models_seldom_and_a_worse_one_mostly(metric: str) -> None:
    assert_honest(metric, num_resamples=100)  # 5 of 101 are as near to alpha as 100 of 2,001


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["f1", "auroc", "loss"])
def test_gate_is_as_honest_with_as_many_resamples_as_it_uses(metric: str) -> None:
    assert_honest(metric, num_resamples=2000)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (0, 5), (4, 17), (17, 4), (30, 30), (120, 90)])
def test_accuracy_is_judged_by_the_exact_test_of_mcnemar(won: int, lost: int) -> None:
    found = compare("accuracy", *counted_pair(200, won, lost, 50))
    expected = [binomtest(num, won + lost, 0.5, "less").pvalue if won + lost else 1.0 for num in (won, lost)]
    assert [found.p_worse, found.p_better] == pytest.approx(expected)
    assert found.test == MCNEMAR
    assert found.difference == pytest.approx((won - lost) / (250 + won + lost))
    assert (found.num_pictures, found.num_discordant) == (250 + won + lost, won + lost)


def test_interval_of_the_accuracy_is_that_of_bonett_and_price() -> None:
    # The example of statpsych's ci.prop.ps, by one of its authors.
    found = compare("accuracy", *counted_pair(both=12, won=26, lost=4, neither=6), alpha=0.025)
    assert found.interval == pytest.approx((0.2548067, 0.6251933), abs=1e-7)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_interval_of_the_accuracy_leaves_out_0_where_the_test_is_significant(alpha: float) -> None:
    for num_discordant in range(40):
        for won in range(num_discordant + 1):
            found = compare("accuracy", *counted_pair(30, won, num_discordant - won, 5), alpha=alpha)
            low, high = found.interval
            assert -1 <= low <= found.difference <= high <= 1
            assert (high < 0, low > 0) == (found.is_worse, found.is_better)


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("metric", BY_BOOTSTRAP)
def test_other_metrics_are_judged_on_resamples_that_both_models_share(metric: str, num_classes: int) -> None:
    challenger, incumbent = answers(num_classes, num_pictures=60), rival(num_classes, num_pictures=60)
    sign = -1 if metric == "loss" else 1
    rng = np.random.default_rng(5)
    gains = []
    for _ in range(39):
        drawn = rng.integers(60, size=60)
        of_challenger, of_incumbent = (measured(metric, each, drawn) for each in (challenger, incumbent))
        gains.append(sign * (of_challenger - of_incumbent))
    found = compare(metric, challenger, incumbent, alpha=0.2, num_resamples=39, seed=5)
    everything = np.arange(60)
    assert found.challenger == pytest.approx(measured(metric, challenger, everything))
    assert found.incumbent == pytest.approx(measured(metric, incumbent, everything))
    assert found.difference == pytest.approx(sign * (found.challenger - found.incumbent))
    assert found.p_worse == (1 + sum(gain > -1e-9 for gain in gains)) / 40
    assert found.p_better == (1 + sum(gain < 1e-9 for gain in gains)) / 40
    assert found.interval == pytest.approx((sorted(gains)[6], sorted(gains)[-7]))
    assert found.test == BOOTSTRAP


@pytest.mark.parametrize("num_resamples", [30, 99, 100, 400])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_interval_of_a_bootstrap_leaves_out_0_where_the_test_is_significant(num_resamples: int, alpha: float) -> None:
    outcomes = set()
    for seed in range(60):
        pair = drawn_pair(0.04, 0.08, seed, num_pictures=100)
        found = compare("f1", *pair, num_resamples=num_resamples, alpha=alpha)
        low, high = found.interval
        assert (high < 0, low > 0) == (found.is_worse, found.is_better)
        outcomes.add(found.is_worse)
    assert outcomes == {True, False}


@pytest.mark.parametrize("metric", METRICS)
def test_roles_can_be_swapped(metric: str) -> None:
    pair = drawn_pair(0.03, 0.09, seed=0)
    one, other = compare(metric, *pair), compare(metric, *pair[::-1])
    assert (one.p_worse, one.p_better) == (other.p_better, other.p_worse)
    assert one.difference == -other.difference < 0
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))
    assert one.is_worse == other.is_better


@pytest.mark.parametrize("metric", METRICS)
def test_a_model_is_neither_worse_nor_better_than_itself(metric: str) -> None:
    model = answers(3)
    found = compare(metric, model, model)
    assert (found.difference, found.p_worse, found.p_better) == (0, 1, 1)
    assert not found.is_worse and not found.is_better
    assert "no difference" in found.describe()


def test_equal_metrics_that_are_added_up_in_another_order_are_no_difference() -> None:
    # Each model misses one picture of another class: their mean recalls differ by rounding only.
    labels = np.repeat(np.arange(7), 9)
    models = []
    for missed in (0, 40):
        probabilities = np.full((63, 7), 0.05)
        probabilities[np.arange(63), labels] = 0.7
        probabilities[missed] = np.roll(probabilities[missed], 1)
        table = Predictions([str(row) for row in range(63)], labels, probabilities, tuple("abcdefg"))
        models.append(Answers.of(table, Decision()))
    recalls = [compute(each.labels, each.calibrated, None)["recall"] for each in models]
    assert recalls[0] == pytest.approx(recalls[1])
    found = compare("recall", *models)
    assert found.difference == 0
    assert found.p_worse > 0.4 < found.p_better


def test_metric_that_no_picture_defines_shows_nothing() -> None:
    found = compare("auroc", answers_of([1, 1], [0.9, 0.2]), answers_of([1, 1], [0.8, 0.7]))
    assert all(map(math.isnan, (found.challenger, found.incumbent, found.difference, *found.interval)))
    assert (found.p_worse, found.p_better) == (1, 1)
    assert found.describe() == "auroc is undefined on 2 pictures"


def test_description_has_every_number() -> None:
    found = compare("accuracy", *counted_pair(400, 15, 40, 45))
    assert found.describe() == (
        "accuracy 0.8300 against 0.8800: significantly worse, by 0.0500 (90 % interval -0.0743 to -0.0253, "
        "p = 0.00051, exact McNemar test, 500 pictures, 55 of them right with one model only)"
    )
    assert ": not significantly better, by 0.0" in compare("loss", *drawn_pair(0.062, 0.058, seed=2)).describe()


def test_models_that_answered_other_questions_are_not_compared() -> None:
    model = answers(2)
    for other in (
        dataclasses.replace(model, ids=model.ids[::-1]),
        dataclasses.replace(model, labels=1 - model.labels),
        dataclasses.replace(model, classes=("class 1", "class 0")),
        dataclasses.replace(model, decision=decision(2, positive=0)),
    ):
        with pytest.raises(ValueError, match="need "):
            compare("f1", model, other)
        with pytest.raises(ValueError, match="need "):
            class_drops(model, other)


def test_no_pictures_are_no_comparison() -> None:
    nothing = Answers.of(said(3, num_pictures=0), decision(3))
    with pytest.raises(ValueError, match="at least one picture"):
        compare("f1", nothing, nothing)


def test_unknown_metric_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'auroc'"):
        compare("auroq", answers(2), answers(2))


def test_too_few_resamples_for_the_level_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 20 resamples"):
        compare("f1", answers(2), rival(2), num_resamples=19)
    assert compare("f1", answers(2), rival(2), num_resamples=20).p_worse >= 1 / 21


def test_recall_of_each_class_is_compared_and_the_largest_drop_comes_first() -> None:
    labels = [0, 0, 0, 0, 1, 1]
    new, old = (
        answers_of(labels, scores) for scores in ([0.9, 0.1, 0.1, 0.9, 0.9, 0.9], [0.1, 0.1, 0.1, 0.9, 0.9, 0.1])
    )
    first, second = class_drops(new, old)
    assert (first.name, first.num, first.challenger, first.incumbent, first.drop) == ("ok", 4, 0.5, 0.75, 0.25)
    assert (second.name, second.num, second.drop) == ("defective", 2, -0.5)


def test_class_without_pictures_drops_nothing() -> None:
    model = answers_of([0, 0], [0.1, 0.9])
    assert [drop.name for drop in class_drops(model, model)] == ["ok"]
