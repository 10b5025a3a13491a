from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import flatfix
from flatfix.config.groups import read_entry, settings
from flatfix.config.options import PUBLISH, TRAIN
from flatfix.config.schema import Schema, Target
from tests.helpers.compose import CONF, ROOT


def run(tmp_path: Path, entry: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / entry), *words], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("optimizer=adamm", ["optimizer=adamm", "Valid: adam, adamw, rmsprop, sgd", "Did you mean 'adam'"]),
        ("optimizer.lrr=1", ["optimizer.lrr", "no such option", "lr, weight_decay", "Did you mean 'lr'"]),
        ("+optimizer.lrr=1", ["optimizer.lrr", "no such option", "Did you mean 'lr'"]),
        ("optimzer=adam", ["optimzer", "Did you mean 'optimizer'"]),
        ("+trainer.epochs=3", ["trainer.epochs", "no such option", "max_epochs"]),
        ("optimizer.lr=-1", ["optimizer.lr: -1 is out of range", "> 0"]),
        ("optimizer._target_=os.system", ["os.system", "not allowed", "torch.optim.*"]),
        ("dataset=folder", ["dataset.name: needs a value", "dataset.source.root: needs a value"]),
        ("store.uri=", ["store.uri: is empty"]),
        ("seed=[", ["seed=["]),
        ("dataset.name=ä", ["""'dataset.name="ä"'"""]),
        ("model=null", ["model=null"]),
        ("tracking.tags.line=7", ["tracking.tags.line", "+tracking.tags.line=value"]),
        ("experment=tires", ["experment: no such option", "Did you mean 'experiment'"]),
        ("callbacks.qualify=null", ["callbacks.qualify: holds options", "min_accuracy"]),
        ("scheduler.gamma=0.5", ["scheduler.gamma: not an option of scheduler=cosine", "scheduler=step"]),
        ("scheduler.gama=0.5", ["scheduler.gama", "final_ratio, warmup_epochs", "Did you mean 'gamma'"]),
        ("augment.prob=2", ["augment has none as chosen", "padding, rotation_degrees"]),
        ("augment.first=trivial", ["augment.first: not an option of augment=none", "augment=mixup"]),
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


@pytest.mark.parametrize(("name", "schema"), [("train", TRAIN), ("publish", PUBLISH)])
def test_help_names_every_group_and_every_option_of_every_choice(tmp_path: Path, name: str, schema: Schema) -> None:
    ended = run(tmp_path, f"{name}.py", "--help")
    assert ended.returncode == 0, ended.stderr
    for part in ("Usage:", "dataset: annotations  cifar10  csv  elpv*  folder", "dataset.name=elpv", "Exit codes"):
        assert part in ended.stdout
    lines = [line for line in ended.stdout.splitlines() if line.startswith("  ") and line[2] != " "]
    shown = {line.split()[0].partition("=")[0] for line in lines}
    read = read_entry(CONF, name)
    heads = {key for key, rule in schema.items() if isinstance(rule, Target) and "." not in key}
    expected = {key for key in schema if key in read.values or settings(read.groups, key)} - heads
    assert len(expected) > 25
    assert expected - shown == set()
    assert max(len(line) for line in ended.stdout.splitlines() if line.startswith(" " * 20)) <= 100
    assert not list(tmp_path.iterdir())


def test_help_tells_what_another_choice_brings(tmp_path: Path) -> None:
    said = run(tmp_path, "train.py", "--help").stdout
    for line in (
        r"  scheduler\.every_epochs=10 +with step: epochs between two steps down \(int >= 1\)",
        r"  optimizer\.momentum=0\.9 +with rmsprop, sgd: momentum \(>= 0, < 1\)",
        r"  augment\.alpha=1\.0 +with cutmix, mixup \(0\.2\): both parameters",
        r"  model\.options=\{\} +keyword arguments of the backbone",
    ):
        assert re.search(line, said)


def test_help_shows_the_options_as_the_overrides_set_them(tmp_path: Path) -> None:
    said = run(tmp_path, "train.py", "--help", "optimizer=sgd").stdout
    assert "sgd*" in said
    assert re.search(r"optimizer\.lr=0\.05 +learning rate", said)
    assert re.search(r"optimizer\.alpha=0\.9 +with rmsprop: ", said)


def test_help_imports_neither_torch_nor_mlflow() -> None:
    code = "import runpy, sys; sys.argv = ['train.py', '--help']; runpy.run_path('train.py', run_name='__main__')"
    script = f"""
try:
    {code}
finally:
    print({{"torch", "mlflow", "matplotlib", "sklearn"}} & sys.modules.keys())
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.stdout.splitlines()[-1] == "set()", ended.stderr


def test_version_is_that_of_flatfix(tmp_path: Path) -> None:
    ended = run(tmp_path, "train.py", "--version")
    assert (ended.returncode, ended.stdout) == (0, f"flatfix {flatfix.__version__}\n")
