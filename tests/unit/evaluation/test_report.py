from __future__ import annotations

import base64
import dataclasses
import json
import re
import resource
import shutil
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatfix.errors import UserError
from flatfix.evaluation import predictions
from flatfix.evaluation.answers import Answers
from flatfix.evaluation.measures import measure
from flatfix.evaluation.metrics import METRICS
from flatfix.evaluation.predictions import Predictions
from flatfix.evaluation.qualification import Bound
from flatfix.evaluation.report import NUM_PICTURES, Evaluation, read_numbers, report
from tests.helpers.answers import HOSTILE_NAMES, decision, said
from tests.helpers.images import colours

FIGURES = ("confusion_matrix", "scores", "reliability", "roc", "precision_recall")
PICTURES = ("mistakes", "uncertain")
SECTIONS = ("metrics", "decision", "confusions", "classes", "probabilities", "ranking")
CARD = {"Run": {"model": "tiny <b>network</b>", "seed": "0"}, "Dataset": {"version": "tires 1"}}
HISTORY = [
    {
        "epoch": epoch,
        "train/loss": 1 / (epoch + 1),
        "val/loss": 1 / (epoch + 2),
        "val/accuracy": 0.7,
        "learning_rate": 0.1,
    }
    for epoch in range(3)
]
VOID = {"meta", "link", "img", "wbr", "br", "hr", "input"}


def evaluate(folder: Path, num_classes: int = 2, **changes: Any) -> Evaluation:
    """Write a report with nothing in it that could be left out."""
    arguments = {
        "validation": said(num_classes, seed=1),
        "test": said(num_classes),
        "decision": decision(num_classes),
        "pictures": None,
        "augmented": None,
        "history": [],
        "card": {},
        "title": "tires 1: tiny",
    }
    return report(folder, **{**arguments, **changes})


def pictures(num: int, side: int = 24) -> np.ndarray:
    return np.stack([colours(side, side, seed) for seed in range(num)])


class Page(HTMLParser):
    """What stands on a page; fails where elements are not closed in the order in which they were opened."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.content = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(self.content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data

    def values(self, attribute: str) -> list[str]:
        return [str(attributes[attribute]) for _, attributes in self.elements if attribute in attributes]

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == "img"]


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """A report with everything in it."""
    return evaluate(
        tmp_path_factory.mktemp("two") / "new" / "evaluation",
        pictures=pictures(400),
        augmented=pictures(30),
        history=HISTORY,
        card=CARD,
        bounds=(Bound("min_accuracy", 0.5),),
    )


@pytest.fixture(scope="module")
def of_hostile_names(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    table = said(4, classes=HOSTILE_NAMES)
    test = dataclasses.replace(table, ids=[f'{row}"><img src=x onerror=alert(1)>' for row in range(400)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return evaluate(
            tmp_path_factory.mktemp("hostile"),
            num_classes=4,
            validation=table,
            test=test,
            pictures=pictures(400),
            card={"Run</h2><script>": {"<i>": "</dd><script>alert(2)</script>"}},
            title="<h1>& co</title>",
        )


@pytest.fixture(scope="module")
def of_hundred(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    rng = np.random.default_rng(0)
    return evaluate(
        tmp_path_factory.mktemp("hundred"),
        num_classes=100,
        pictures=rng.integers(0, 255, (400, 128, 128, 3), np.uint8),  # what compresses worst
        augmented=rng.integers(0, 255, (24, 128, 128, 3), np.uint8),
        history=HISTORY,
        card=CARD,
    )


def test_report_writes_the_tables_the_metrics_the_figures_and_the_page(of_two: Evaluation) -> None:
    folder = of_two.report_path.parent
    names = {*FIGURES, *PICTURES, "learning_curves", "augmented"}
    assert {path.name for path in of_two.figure_paths} == {f"{name}.png" for name in names}
    assert of_two.report_path == folder / "report.html"
    assert of_two.predictions_path == folder / "predictions.parquet"
    others = {"report.html", "predictions.parquet", "validation.parquet", "metrics.json"}
    assert {path.name for path in folder.iterdir()} == {path.name for path in of_two.figure_paths} | others


def test_numbers_follow_from_the_tables_and_the_decision(of_two: Evaluation) -> None:
    folder = of_two.report_path.parent
    test, validation = (
        Answers.of(predictions.read(folder / name), decision(2, temperature=1.0))  # the tables hold calibrated ones
        for name in ("predictions.parquet", "validation.parquet")
    )
    measures = measure(test, validation)
    assert list(of_two.metrics) == list(METRICS)
    assert of_two.metrics == measures.test
    assert of_two.intervals == measures.intervals
    assert of_two.validation_metrics == measures.validation
    assert of_two.calibration_error[1] == measures.calibration_error[1]


def test_metrics_json_holds_every_number(of_two: Evaluation) -> None:
    assert json.loads((of_two.report_path.parent / "metrics.json").read_text()) == {
        "test": of_two.metrics,
        "intervals": {name: list(interval) for name, interval in of_two.intervals.items()},
        "validation": of_two.validation_metrics,
        "calibration_error": list(of_two.calibration_error),
    }


@pytest.mark.parametrize("name", ["of_two", "of_hostile_names", "of_hundred"])
def test_the_page_needs_no_other_file_and_no_script(name: str, request: pytest.FixtureRequest) -> None:
    page = Page(request.getfixturevalue(name).report_path)
    assert all(uri.startswith("data:image/") for uri in page.values("src"))
    assert all(uri.startswith(("#", "data:")) for uri in page.values("href"))
    assert not re.search(r"url\(|@import", page.content)
    assert not {tag for tag, _ in page.elements} & {"script", "iframe", "object", "embed", "form", "base"}
    assert not any(attribute.startswith("on") for _, attributes in page.elements for attribute in attributes)


@pytest.mark.parametrize("name", ["of_two", "of_hostile_names", "of_hundred"])
def test_every_link_leads_to_a_section_and_ids_are_unique(name: str, request: pytest.FixtureRequest) -> None:
    page = Page(request.getfixturevalue(name).report_path)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {uri[1:] for uri in page.values("href") if uri.startswith("#")} == set(ids)


def test_all_sections_are_there(of_two: Evaluation) -> None:
    page = Page(of_two.report_path)
    assert page.values("id") == [*SECTIONS, *PICTURES, "augmented", "learning", "card-1", "card-2"]
    assert "tiny <b>network</b>" in page.text
    assert "tires 1: tiny" in page.text
    assert "400 test pictures, 2 classes" in page.text


def test_the_figures_on_the_page_are_the_files_and_say_what_they_show(of_two: Evaluation) -> None:
    page = Page(of_two.report_path)
    shown = {base64.b64decode(str(image["src"]).partition(",")[2]): image["alt"] for image in page.images()}
    for path in of_two.figure_paths:
        if path.stem not in (*PICTURES, "augmented"):
            assert len(str(shown[path.read_bytes()])) > 15


def test_headline_numbers_are_on_the_page(of_two: Evaluation) -> None:
    text = Page(of_two.report_path).text
    low, high = of_two.intervals["recall"]
    assert f"{100 * of_two.metrics['accuracy']:.1f}\u00a0%" in text
    assert f"95 %: {100 * low:.1f}–{100 * high:.1f}\u00a0%" in text
    assert "Recall of class 1" in text


def test_the_page_says_whether_the_model_qualified(tmp_path: Path, of_two: Evaluation, of_hundred: Evaluation) -> None:
    assert of_two.qualification.is_qualified
    assert f"✓ Qualified on validation: {of_two.qualification.reason}" in Page(of_two.report_path).text
    refused = evaluate(tmp_path, bounds=(Bound("max_loss", 0.001),))
    assert f"✗ Not qualified on validation: {refused.qualification.reason}" in Page(refused.report_path).text
    assert "ualified" not in Page(of_hundred.report_path).text


def test_pictures_are_shown_with_truth_answer_and_id(of_two: Evaluation) -> None:
    alts = [str(image["alt"]) for image in Page(of_two.report_path).images()]
    test = Answers.of(said(2), decision(2))
    worst = int(test.worst_mistakes(1)[0])
    words = f"picture {worst}: class {test.labels[worst]}, decided as class {test.predictions[worst]}, probability of"
    assert f"{words} class 1 {100 * test.calibrated[worst, 1]:.1f}\u00a0%" in alts
    assert sum(", decided as " in alt for alt in alts) == 2 * NUM_PICTURES
    assert sum(alt.startswith("Augmented training picture") for alt in alts) == NUM_PICTURES


def test_names_from_outside_are_text_and_nothing_else(of_hostile_names: Evaluation) -> None:
    page = Page(of_hostile_names.report_path)
    for name in (*HOSTILE_NAMES, "<h1>& co</title>", "</dd><script>alert(2)</script>", "Run</h2><script>"):
        assert name in page.text
    assert '"><img src=x onerror=alert(1)>' in page.text
    assert "<script" not in page.content


def test_a_hundred_classes_stay_small_and_come_weakest_first(of_hundred: Evaluation) -> None:
    assert of_hundred.report_path.stat().st_size < 3_000_000
    page = Page(of_hundred.report_path)
    rows = re.findall(r'<th scope="row">\s*(class \d+)\s*</th>', page.content)
    assert sorted(rows) == sorted(f"class {index}" for index in range(100))
    shares = [float(share) for share in re.findall(r"class \d+\s*</th><td>\d+</td>\s*<td[^>]*>([\d.]+)", page.content)]
    assert shares == sorted(shares)


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    evaluation = evaluate(tmp_path)
    page = Page(evaluation.report_path)
    assert page.values("id") == list(SECTIONS)
    assert {path.stem for path in evaluation.figure_paths} == set(FIGURES)
    assert len(page.images()) == len(FIGURES)


def test_a_model_without_mistakes_shows_none(tmp_path: Path) -> None:
    perfect = Predictions(["a", "b"], np.array([0, 1]), np.array([[1.0, 0.0], [0.0, 1.0]]), ("ok", "defective"))
    evaluation = evaluate(tmp_path, validation=perfect, test=perfect, pictures=pictures(2))
    assert not (tmp_path / "mistakes.png").exists()
    assert "mistakes" not in Page(evaluation.report_path).values("id")
    assert "uncertain" in Page(evaluation.report_path).values("id")


def test_second_report_replaces_the_first_and_what_it_no_longer_shows(tmp_path: Path, of_two: Evaluation) -> None:
    folder = tmp_path / "evaluation"
    shutil.copytree(of_two.report_path.parent, folder)
    later = evaluate(folder, decision=decision(2, threshold=0.99))
    assert later.metrics["recall"] < of_two.metrics["recall"]
    assert json.loads((folder / "metrics.json").read_text())["test"] == later.metrics
    assert {path.stem for path in folder.glob("*.png")} == set(FIGURES)
    assert Page(folder / "report.html").values("id") == list(SECTIONS)


def test_the_numbers_are_read_as_they_were_written(tmp_path: Path) -> None:
    test = said(2)
    evaluation = evaluate(tmp_path, test=dataclasses.replace(test, labels=np.ones_like(test.labels)))
    numbers = read_numbers(tmp_path / "metrics.json")
    np.testing.assert_equal(numbers["test"], evaluation.metrics)  # for which nan is nan
    np.testing.assert_equal(numbers["intervals"], evaluation.intervals)


def test_undefined_metric_is_null_in_the_file(tmp_path: Path) -> None:
    test = said(2)
    evaluation = evaluate(tmp_path, test=dataclasses.replace(test, labels=np.ones_like(test.labels)))
    assert np.isnan(evaluation.metrics["auroc"])
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert (numbers["test"]["auroc"], numbers["intervals"]["auroc"]) == (None, [None, None])


def test_a_decision_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.positive_class"):
        evaluate(tmp_path, decision=decision(3))
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_the_earlier_page_and_nothing_half_written(tmp_path: Path, of_two: Evaluation) -> None:
    folder = tmp_path / "evaluation"
    shutil.copytree(of_two.report_path.parent, folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(OSError):
            evaluate(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (folder / "report.html").read_bytes() == of_two.report_path.read_bytes()
    assert not list(folder.glob(".*"))


def test_evaluation_cannot_be_changed(of_two: Evaluation) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        of_two.metrics = {}  # type: ignore[misc]
