"""Training that is killed again and again comes to the same end, bit for bit, as training that is left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from torch import Tensor

from flatfix.config.exit_codes import ExitCode
from flatfix.training.snapshots import is_intact, newest_intact
from tests.helpers.compose import TINY
from tests.helpers.mlflow_db import fresh_database
from tests.helpers.mortal import Kill, Nursery

pytestmark = pytest.mark.slow

NUM_EPOCHS, STEPS_PER_EPOCH = 3, 12
NUM_STEPS = NUM_EPOCHS * STEPS_PER_EPOCH
NUM_RUNS = 5
OPTIONS = (
    *TINY,
    f"trainer.max_epochs={NUM_EPOCHS}",
    "dataset.batch_size=8",
    "dataset.decoded_gigabytes=0",
    "model=wrn_28_10",
    "+model.options={depth: 10, width: 1}",
    "model.options.dropout=0.3",
    "augment=inspection",
    "scheduler=cosine",
    "optimizer.lr=0.01",
    "trainer.ema_decay=0.9",
    "trainer.checkpoint_every_steps=3",
    "callbacks.early_stopping.patience=null",
)


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("log") / "runs.txt") as nursery:
        yield nursery


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output")
    fresh_database(folder)
    return folder


def kills() -> list[list[Kill]]:
    """Draw 20 steps for each signal, among them some at the end of an epoch and in its validation; share them out."""
    draw = random.Random(8)
    drawn = []
    for number in (signal.SIGTERM, signal.SIGKILL):
        steps = draw.sample([step for step in range(3, NUM_STEPS) if step % STEPS_PER_EPOCH], 14)
        hooks = ["on_train_batch_start", "training_step", "on_train_batch_end"]
        drawn += [Kill(number, draw.choice(hooks), step) for step in steps]
        for step in range(STEPS_PER_EPOCH, NUM_STEPS + 1, STEPS_PER_EPOCH):
            drawn += [Kill(number, "validation_step", step), Kill(number, "on_train_epoch_end", step)]
    drawn.sort(key=lambda kill: kill.step)
    return [drawn[first::NUM_RUNS] for first in range(NUM_RUNS)]


def history(client: MlflowClient, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Read every value of every metric, in the order of the steps; those of the clock without the value."""
    return {
        key: sorted(
            (point.step, 0.0 if key == "images_per_second" else point.value)
            for point in client.get_metric_history(run_id, key)
        )
        for key in client.get_run(run_id).data.metrics
    }


def end_of(folder: Path) -> dict[str, Any]:
    """Read the last state: the weights, their average, and the optimizer with its moments."""
    newest = newest_intact(folder / "checkpoints")
    assert newest and newest.name.startswith(f"state-{NUM_STEPS:08d}-")
    state = torch.load(newest, weights_only=True)
    return {key: state[key] for key in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers")}


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Return the names of the values that differ, in whatever is nested."""
    if isinstance(one, Tensor):
        return [] if torch.equal(one, other) else [name]
    if isinstance(one, dict | list):
        keys = one if isinstance(one, dict) else range(len(one))
        assert len(one) == len(other)
        return [found for key in keys for found in differences(one[key], other[key], f"{name}/{key}")]
    return [] if one == other else [name]


def test_runs_that_are_killed_at_twenty_steps_by_each_signal_end_like_one_that_was_not(
    nursery: Nursery, output: Path
) -> None:
    client = MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    assert nursery.run(output, *OPTIONS, f"paths.run={output / 'whole'}") == ExitCode.DONE
    (whole,) = client.search_runs(["1"])
    end, curves = end_of(output / "whole"), history(client, whole.info.run_id)
    assert {len(points) for key, points in curves.items() if key.startswith(("train/", "val/"))} == {NUM_EPOCHS}

    for number, series in enumerate(kills()):
        folder = output / f"run-{number}"
        for nth, kill in enumerate(series):
            start = f"paths.run={folder if nth == 0 else output / f'start-{number}-{nth}'}"
            code = nursery.run(output, *OPTIONS, start, "resume.from=auto", kill=kill)
            assert code == (ExitCode.INTERRUPTED if kill.number == signal.SIGTERM else -signal.SIGKILL), kill
        assert nursery.run(output, *OPTIONS, f"paths.run={output / 'last'}", "resume.from=auto") == ExitCode.DONE

        newest, *_ = client.search_runs(["1"], order_by=["attributes.start_time DESC"])
        assert newest.data.tags["folder"] == str(folder)
        assert differences(end_of(folder), end) == []
        assert history(client, newest.info.run_id) == curves
    assert len(client.search_runs(["1"])) == 1 + NUM_RUNS

    assert nursery.run(output, *OPTIONS, f"paths.run={output / 'other'}", "seed=1") == ExitCode.DONE
    assert differences(end_of(output / "other")["state_dict"], end["state_dict"])


SAVE = """
import os
import sys
from pathlib import Path
import torch
from flatfix.training.snapshots import write

torch.zeros(1)
for line in sys.stdin:
    folder, step = line.split()
    if child := os.fork():
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    step = int(step)
    while True:
        step += 1
        write({"step": step, "weights": torch.full((1 << 18,), float(step))}, Path(folder), step)
        os.write(1, f"{step}\\n".encode())  # at once: print may be killed before the end of its line
"""


def test_two_hundred_kills_while_saving_leave_no_state_that_cannot_be_read(tmp_path: Path) -> None:
    draw = random.Random(8)
    process = subprocess.Popen([sys.executable, "-c", SAVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    step = num_torn = 0
    for _ in range(200):
        print(tmp_path, step, file=process.stdin, flush=True)
        child = int(process.stdout.readline())
        saved = int(process.stdout.readline())  # and from here on it saves without a pause
        time.sleep(draw.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        while (line := int(process.stdout.readline())) > 0:
            saved = line
        assert line == -signal.SIGKILL

        states = list(tmp_path.glob("state-*"))
        newest = newest_intact(tmp_path)
        assert newest and all(is_intact(state) for state in states) and len(states) <= 3
        content = torch.load(newest, weights_only=True)
        step = content["step"]
        assert saved <= step <= saved + 1
        assert (content["weights"] == step).all()
        for torn in tmp_path.glob(".*.partial"):
            num_torn += 1
            torn.unlink()
    process.stdin.close()
    process.wait()
    process.stdout.close()
    assert num_torn > 100  # else the kills came between two savings
