from __future__ import annotations

import shlex

import pytest

from flatfix.sweeps import commands


@pytest.fixture(autouse=True)
def command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "train.py",
        "-m",
        "sweep=tpe",
        "optimizer.lr=tag(log,interval(1e-4,1e-1))",
        "tracking.uri=http://u:s3cret@h",
    ]
    monkeypatch.setattr("sys.argv", words)


def test_the_command_that_trains_a_job_again_has_all_but_what_concerns_the_multirun() -> None:
    overrides = ["sweep=tpe", "sweep.workers=2", "hydra.sweeper.n_trials=3", "optimizer.lr=0.01", "model='a b'"]
    assert commands.training(overrides) == """python train.py sweep=tpe optimizer.lr=0.01 'model='"'"'a b'"'"''"""


def test_the_command_that_goes_on_names_the_sweep_and_keeps_passwords_to_itself() -> None:
    line = commands.continuing("monday")
    assert shlex.split(line)[-1] == "sweep.name=monday"
    assert "'optimizer.lr=tag(log,interval(1e-4,1e-1))'" in line
    assert "s3cret" not in line


@pytest.mark.parametrize("word", ["tracking.uri='http://u:s3cret@h'", "++sweep.storage=postgresql://u:s3cret@h/d"])
def test_a_password_is_not_shown_whatever_way_its_option_is_written(word: str) -> None:
    assert commands.without_password(word) == word.replace("s3cret", "***")


def test_the_command_that_goes_on_names_the_sweep_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "-m", "sweep=tpe", "sweep.name=tuesday"])
    assert commands.continuing("tuesday") == "python train.py -m sweep=tpe sweep.name=tuesday"
