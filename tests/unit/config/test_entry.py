from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.compose import ROOT


def run(tmp_path: Path, entry: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / entry), *words], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("optimizer=adamm", ["optimizer=adamm", "Valid: adam, adamw, sgd", "Did you mean 'adam'"]),
        ("optimizer.lrr=1", ["optimizer.lrr", "no such option", "lr, weight_decay", "Did you mean 'lr'"]),
        ("+optimizer.lrr=1", ["optimizer.lrr", "no such option", "Did you mean 'lr'"]),
        ("optimzer=adam", ["optimzer", "Did you mean 'optimizer'"]),
        ("+trainer.epochs=3", ["trainer.epochs", "no such option", "max_epochs"]),
        ("optimizer.lr=-1", ["optimizer.lr: -1 is out of range", "> 0"]),
        ("optimizer._target_=os.system", ["os.system", "not allowed", "torch.optim.*"]),
        ("dataset=folder", ["dataset.name: needs a value", "dataset.source.root: needs a value"]),
        ("store.uri=", ["store.uri: is empty"]),
        ("seed=[", ["seed=["]),
        ("model=null", ["model=null"]),
        ("tracking.tags.line=7", ["tracking.tags.line", "+tracking.tags.line=value"]),
    ],
)
def test_wrong_usage_ends_with_2_and_one_message_and_leaves_nothing(
    tmp_path: Path, word: str, parts: list[str]
) -> None:
    ended = run(tmp_path, "train.py", word)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    for part in parts:
        assert part in ended.stderr
    assert len(ended.stderr.splitlines()) <= 4
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("entry", ["train.py", "publish.py"])
def test_help_names_every_group_and_option(tmp_path: Path, entry: str) -> None:
    ended = run(tmp_path, entry, "--help")
    assert ended.returncode == 0
    for part in ("Usage:", "dataset     elpv*  folder  published  tires", "dataset.name=elpv", "Exit codes"):
        assert part in ended.stdout
    assert not list(tmp_path.iterdir())


def test_help_shows_the_options_as_the_overrides_set_them(tmp_path: Path) -> None:
    ended = run(tmp_path, "train.py", "--help", "optimizer=sgd")
    assert "optimizer.momentum=0.9" in ended.stdout
