from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.offline
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from flatfix.sweeps.figures import draw
from flatfix.sweeps.page import write
from flatfix.sweeps.summary import summarise
from tests.helpers.studies import add, empty, searched

VOID = {"meta", "link", "img", "wbr", "br", "input"}
ONE_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


class Page(HTMLParser):
    """What stands on a page, without plotly; fails where elements are not closed in their order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.content = path.read_text(encoding="utf-8")
        self.num_libraries = self.content.count(plotly.offline.get_plotlyjs())
        self.content = self.content.replace(plotly.offline.get_plotlyjs(), "")
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.feed(self.content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()

    @property
    def plots(self) -> dict[str, dict[str, Any]]:
        found = re.findall(r'const \{ data, layout \} = (.*);\s+Plotly\.newPlot\("([^"]+)"', self.content)
        return {name: json.loads(text) for text, name in found}


def written(folder: Path, study: Any, *objectives: str, figures: tuple[str, ...] | None = None) -> Page:
    """Write a page; with `figures`, pictures stand for drawings."""
    objectives = objectives or ("accuracy",)
    summary = summarise(study, objectives, 10, lambda trial: f"python train.py x='{trial.number} <&>'")
    if figures is None:
        paths = draw(study, objectives, folder)
    else:
        paths = [folder / f"{name}.png" for name in figures]
        for path in paths:
            path.write_bytes(ONE_PIXEL)
    return Page(write(study, objectives, summary, paths, folder))


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Page:
    names = ("history", "curves", "importances", "parallel", "slices")
    return written(tmp_path_factory.mktemp("one"), searched(), figures=names)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Page:
    study = searched(12, directions=("maximize", "minimize"))
    names = ("pareto", "history", "importances", "parallel", "slices")
    return written(tmp_path_factory.mktemp("two"), study, "accuracy", "latency_ms", figures=names)


def test_one_file_holds_everything_and_leads_nowhere(one):
    assert one.num_libraries == 1
    for tag, attributes in one.elements:
        assert tag not in ("a", "iframe", "form", "base")
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    policy = next(a["content"] for tag, a in one.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; img-src data: blob:;")
    assert "http" not in policy


def test_it_says_what_the_terminal_says(one):
    assert "24 trials: 12 complete, 10 pruned, 2 failed." in one.text
    assert "pruning saved 77 epochs (34 %)" in one.text
    assert "The best: trial 11" in one.text
    assert "python train.py x='11 <&>'" in one.text
    assert "RuntimeError: CUDA out of memory" in one.text


def test_every_trial_that_ran_is_in_the_table(one):
    header, *rows = one.rows
    options = ["depth", "batch_size", "label_smoothing", "model", "lr", "weight_decay"]
    assert header == ["trial", "state", "accuracy", *options, "epochs", "time", "run", "reason"]
    assert [row[0] for row in rows] == [str(number) for number in range(24)]
    assert rows[11][:4] == ["11", "complete", "0.9277", "5"]
    assert rows[5][1:3] == ["failed", ""]
    assert rows[5][-1].startswith("RuntimeError")


def test_each_figure_answers_to_the_pointer_and_has_a_drawing_for_those_without_scripts(one):
    names = [name for name in one.plots if not name.startswith("slices")]
    assert names == ["history-1", "curves-1", "importances-1", "parallel-1"]
    assert sum(name.startswith("slices") for name in one.plots) == 6
    ids = {attributes.get("id") for _, attributes in one.elements}
    assert set(one.plots) <= ids
    assert sum(tag == "noscript" for tag, _ in one.elements) == 5
    assert "trial 11" in str(one.plots["history-1"]["data"][0]["text"])
    assert "user_attrs" not in json.dumps(one.plots)


def test_slices_keep_the_scale_and_the_names_of_their_space(one):
    slices = {plot["layout"]["xaxis"]["title"]["text"]: plot for name, plot in one.plots.items() if "slices" in name}
    assert slices["lr"]["layout"]["xaxis"]["type"] == "log"
    assert slices["model"]["layout"]["xaxis"]["categoryarray"] == ["resnet18", "efficientnet_b0", "cnn"]
    assert set(slices["model"]["data"][0]["x"]) == {"resnet18", "efficientnet_b0", "cnn"}


def test_of_two_objectives_each_unbeaten_trial_opens_to_its_command(two):
    assert "Beaten by none in both accuracy and latency_ms" in two.text
    assert sum(tag == "details" for tag, _ in two.elements) == 5
    assert "python train.py x='8 <&>'" in two.text
    assert "trial 8 with accuracy 0.9301, latency_ms 4.548\n" in two.text
    beaten, unbeaten = two.plots["pareto-1"]["data"]
    assert (beaten["name"], unbeaten["name"]) == ("beaten", "beaten by none")
    assert len(unbeaten["text"]) == 5
    assert [plot for plot in two.plots if plot.startswith("history")] == ["history-1", "history-2"]


@pytest.mark.parametrize("state", [None, "failed", "pruned"])
def test_a_sweep_without_a_complete_trial_has_a_page(tmp_path, state):
    study = empty()
    if state:
        add(study, state, params={"optimizer.lr": 0.001}, reason="boom" if state == "failed" else "")
    page = written(tmp_path, study)
    assert "No trial is complete" in page.text
    assert "Not drawn: history, for no trial is complete." in page.text
    assert page.num_libraries == 0


def test_names_and_reasons_from_outside_are_text(tmp_path):
    evil = "</script><script>alert(1)</script><b onclick=x>"
    study = empty(name=evil)
    space = {evil: CategoricalDistribution([evil, "b"]), "y": FloatDistribution(0, 1)}
    for number in range(4):
        params = {evil: space[evil].choices[number % 2], "y": number / 4}
        add(study, "complete", [number / 10], params=params, space=space, run_id=evil)
    add(study, "failed", reason=evil)
    page = written(tmp_path, study, figures=("history", "parallel", "slices"))
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    assert not any("onclick" in attributes for _, attributes in page.elements)
    assert page.rows[-1][-1] == evil
    assert len(page.plots) == 4
