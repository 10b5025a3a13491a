from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from flatfix.data.publish import publish
from flatfix.data.splits import SplitRule
from flatfix.data.store import LocalStore
from flatfix.training.run import train
from tests.helpers.compose import ROOT, TINY, compose_train
from tests.helpers.images import MemorySource, records
from tests.helpers.mlflow_db import fresh_database

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
Execute = Callable[[str, Path], NotebookNode]


@pytest.fixture
def execute(monkeypatch: pytest.MonkeyPatch) -> Execute:
    def run(name: str, output: Path) -> NotebookNode:
        monkeypatch.setenv("FLATFIX_OUTPUT", str(output))
        notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
        resources = {"metadata": {"path": str(ROOT / "notebooks")}}
        return NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()

    return run


def said(notebook: NotebookNode, cell_id: str) -> str:
    """Return all text that a cell gave."""
    (cell,) = [cell for cell in notebook.cells if cell.id == cell_id]
    texts = [each.text if each.output_type == "stream" else each.data["text/plain"] for each in cell.outputs]
    return "\n".join(texts)


def num_figures(notebook: NotebookNode) -> int:
    outputs = [each for cell in notebook.cells for each in cell.get("outputs", [])]
    return sum("image/png" in each.get("data", {}) for each in outputs)


def warnings_of(notebook: NotebookNode) -> list[str]:
    outputs = [each for cell in notebook.cells for each in cell.get("outputs", [])]
    return [each.text for each in outputs if each.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_holds_no_outputs(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    held = [cell.id for cell in cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)]
    assert held == [], "run `.venv/bin/python -m nbstripout --keep-id notebooks/*.ipynb`"


def test_the_dataset_notebook_finds_groups_and_duplicates(execute: Execute, tmp_path: Path) -> None:
    pictures = records(90, ("cat", "dog", "owl"))
    pictures = [
        replace(each, group=f"cage-{number % 5}", target=(0.8, 0.1, 0.1)) for number, each in enumerate(pictures)
    ]
    pictures[1] = replace(pictures[1], location=pictures[0].location)  # a cat and a dog at once
    publish(
        MemorySource(pictures, ("cat", "dog", "owl")),
        LocalStore(tmp_path / "store"),
        name="zoo",
        version="v1",
        rule=SplitRule(groups="stratify"),
        allow_duplicates=True,
    )
    notebook = execute("01_dataset.ipynb", tmp_path)
    assert "zoo" in said(notebook, "versions")
    assert "5 groups, 5 of them in more than one split" in said(notebook, "groups")
    for line in (r"occur more than once +2", r"with two labels +2"):
        assert re.search(line, said(notebook, "duplicates"))
    assert "0.8" in said(notebook, "targets")
    assert num_figures(notebook) == 5
    assert warnings_of(notebook) == []


def test_the_runs_notebook_compares_two_runs_on_the_same_pictures(execute: Execute, tmp_path: Path) -> None:
    fresh_database(tmp_path)
    runs = [
        train(
            compose_train(tmp_path, *TINY, "report=true", f"optimizer={name}", f"paths.run={tmp_path / 'runs' / name}")
        )
        for name in ("adamw", "sgd")
    ]
    notebook = execute("02_compare_runs.ipynb", tmp_path)
    assert "torch.optim.SGD" in said(notebook, "settings")
    assert set(re.findall(r"\((\w{4})\)", said(notebook, "predictions"))) == {run.run_id[:4] for run in runs}
    paired = said(notebook, "paired")
    assert re.search(r"pictures +40\n", paired)
    first, second = (int(num) for num in re.findall(r"only the \w+ +(\d+)", paired))
    accuracies = [run.test["accuracy"] for run in runs]
    assert abs(first - second) / 40 == pytest.approx(max(accuracies) - min(accuracies))
    assert num_figures(notebook) >= 3
    assert warnings_of(notebook) == []


@pytest.mark.slow
def test_the_runs_notebook_works_with_one_run(execute: Execute, tmp_path: Path) -> None:
    fresh_database(tmp_path)
    run = train(compose_train(tmp_path, *TINY, "report=true"))
    notebook = execute("02_compare_runs.ipynb", tmp_path)
    assert run.run_id[:4] in said(notebook, "runs")
    assert "one run" in said(notebook, "settings")
    assert re.search(r"p \(McNemar, exact, two-sided\) +1\.0", said(notebook, "paired"))
