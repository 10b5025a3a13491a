from __future__ import annotations

import numpy as np

from flatfix.evaluation.answers import Answers
from flatfix.evaluation.findings import class_rows, decision_rows, metric_rows, summary
from flatfix.evaluation.measures import measure
from flatfix.evaluation.predictions import Predictions
from flatfix.inference.decision import Decision
from tests.helpers.answers import answers, answers_of

# Nine pictures are defective, of which one is missed; one of five others is a false alarm.
OF_TWO = answers_of(
    [1] * 9 + [0] * 5, [0.9] * 7 + [0.45, 0.25] + [0.35] + [0.1] * 4, review=(0.2, 0.4), rule="recall of at least 0.8"
)


def of_many(labels: list[int], predictions: list[int], classes: tuple[str, ...]) -> Answers:
    probabilities = np.full((len(labels), len(classes)), 0.1)
    probabilities[np.arange(len(labels)), predictions] = 1 - 0.1 * (len(classes) - 1)
    return Answers.of(
        Predictions([str(i) for i in range(len(labels))], np.array(labels), probabilities, classes), Decision()
    )


def test_the_summary_of_two_classes_counts_what_is_found_missed_and_falsely_found() -> None:
    assert summary(OF_TWO) == [
        "Of 9 pictures of defective, 8 are found and 1 missed.",
        "Of 5 other pictures, 1 raise a false alarm.",
        "A person would see 2 pictures, and 2 of the 2 mistakes in them.",
    ]


def test_the_summary_of_many_classes_names_the_weakest_and_the_most_frequent_confusion() -> None:
    test = of_many([0, 0, 0, 0, 1, 1, 2, 2, 2], [1, 1, 0, 0, 1, 1, 2, 2, 1], ("cat", "dog", "frog"))
    assert summary(test) == [
        "6 of 9 pictures are decided rightly.",
        "Found least is cat: 2 of 4 pictures.",
        "The most frequent confusion is cat taken for dog, 2 times.",
    ]


def test_the_summary_of_a_perfect_model_names_no_confusion() -> None:
    assert summary(of_many([0, 1, 2], [0, 1, 2], ("cat", "dog", "frog"))) == ["3 of 3 pictures are decided rightly."]


def test_metrics_of_two_classes_name_the_positive_one() -> None:
    rows = {row.name: row for row in metric_rows(OF_TWO, measure(OF_TWO, OF_TWO), "accuracy")}
    assert list(rows) == [
        "Accuracy",
        "Recall of defective",
        "Precision of defective",
        "F1 of defective",
        "AUROC of defective",
        "Loss",
    ]
    assert rows["Recall of defective"].test == "88.9\u00a0%"
    assert [name for name, row in rows.items() if row.is_tile] == [
        "Accuracy",
        "Recall of defective",
        "Precision of defective",
        "AUROC of defective",
    ]


def test_metrics_of_many_classes_say_that_they_are_means() -> None:
    test = answers(3)
    rows = metric_rows(test, measure(test, test), "recall")
    assert [row.name for row in rows if row.is_tile] == [
        "Accuracy",
        "Recall, mean over classes",
        "F1, mean over classes",
        "AUROC, mean over classes",
        "Loss",
    ]


def test_without_validation_nothing_is_said_of_it() -> None:
    alone = measure(OF_TWO)
    beside = measure(OF_TWO, OF_TWO)
    assert {row.validation for row in metric_rows(OF_TWO, alone, "accuracy")} == {None}
    recall = dict(decision_rows(OF_TWO, alone))["Recall at the threshold"]
    assert dict(decision_rows(OF_TWO, beside))["Recall at the threshold"] == f"{recall}; on validation 88.9\u00a0%"


def test_intervals_hold_the_value_and_their_unit_once() -> None:
    test = answers(2)
    for row in metric_rows(test, measure(test, test), "accuracy"):
        low, _, high = row.interval.partition("–")
        assert float(low) <= float(row.test.removesuffix("\u00a0%")) <= float(high.removesuffix("\u00a0%"))
        if row.span:
            assert 0 <= row.span[0] <= row.span[1] <= row.span[2] <= 100


def test_what_is_undefined_is_a_dash() -> None:
    test = answers_of([0, 0], [0.1, 0.6])
    (auroc,) = (row for row in metric_rows(test, measure(test, test), "loss") if row.name.startswith("AUROC"))
    assert (auroc.test, auroc.interval, auroc.span) == ("–", "–", None)


def test_the_decision_of_two_classes_says_what_follows_from_it() -> None:
    measures = measure(OF_TWO, answers_of([1, 1, 0, 0], [0.9, 0.8, 0.1, 0.2]))
    low, high = (100 * end for end in measures.intervals["recall"])
    rows = dict(decision_rows(OF_TWO, measures))
    assert rows["Threshold"] == "0.3000 for defective"
    assert rows["Rule"] == "recall of at least 0.8"
    assert rows["Recall at the threshold"] == f"88.9\u00a0% ({low:.1f}–{high:.1f}\u00a0%); on validation 100.0\u00a0%"
    assert rows["Review band"] == "0.2000 to 0.4000"
    assert rows["Pictures in the band"] == "2 of 14 (14.3\u00a0%)"
    assert rows["Mistakes in the band"] == "2 of 2"
    assert rows["Accuracy outside it"] == "100.0\u00a0%"


def test_the_decision_of_many_classes_has_no_threshold() -> None:
    test = answers(3)
    before, after = (f"{100 * error:.1f}\u00a0%" for error in measure(test, test).calibration_error)
    assert decision_rows(test, measure(test, test)) == [
        ("Temperature", "2.500"),
        ("Calibration error", f"{before} → {after}"),
        ("Decided", test.decision.rule),
    ]


def test_classes_come_weakest_first_with_what_they_are_taken_for_and_unseen_ones_last() -> None:
    test = of_many([0, 0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, 2, 2], ("cat", "dog", "frog", "unseen"))
    rows = class_rows(test)
    assert [row.figures.name for row in rows] == ["cat", "dog", "frog", "unseen"]
    assert [row.taken_for for row in rows] == ["dog (2)", "", "", ""]
    assert [row.figures.num for row in rows] == [3, 2, 2, 0]
