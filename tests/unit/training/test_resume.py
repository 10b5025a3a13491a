from __future__ import annotations

import copy
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from mlflow import MlflowClient

from flatfix.errors import UserError
from flatfix.files import locked
from flatfix.tracking.connection import preflight
from flatfix.training import resume
from flatfix.training.facts import config_digest
from flatfix.training.resume import Record, Start, check, starting
from flatfix.training.run import train
from tests.helpers.compose import TINY, compose_train
from tests.helpers.mlflow_db import fresh_database

RUN_ID = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return compose_train(tmp_path_factory.mktemp("output"), *TINY, "trainer.max_epochs=3")


def changed(cfg: dict[str, Any], *words: str) -> dict[str, Any]:
    """Return a config with options set, or left out, as on a command line: composing it anew takes longer."""
    cfg = copy.deepcopy(cfg)
    for word in words:
        option, _, value = word.lstrip("~").partition("=")
        *nodes, leaf = option.split(".")
        node = functools.reduce(lambda inner, name: inner[name], nodes, cfg)
        if word.startswith("~"):
            del node[leaf]
        else:
            node[leaf] = yaml.safe_load(value)
    return cfg


@pytest.mark.parametrize(
    "word",
    [
        "paths.run=/elsewhere",
        "resume.from=auto",
        "tracking.run_name=night",
        "dataset.source.seed=9",
        "trainer.checkpoint_every_steps=7",
        "sweep.name=other",
        "report=true",
    ],
)
def test_what_cannot_change_the_result_is_not_in_the_digest(tiny: dict[str, Any], word: str) -> None:
    assert config_digest(changed(tiny, word)) == config_digest(tiny)


@pytest.mark.parametrize(
    "word",
    ["seed=1", "trainer.max_epochs=4", "optimizer.lr=0.1", "dataset.decoded_gigabytes=0", "~scheduler.final_ratio"],
)
def test_what_can_change_the_result_is_in_the_digest(tiny: dict[str, Any], word: str) -> None:
    assert config_digest(changed(tiny, word)) != config_digest(tiny)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resume.mode=branch"], r"resume\.mode=branch: has no effect without resume\.from"),
        (["resume.from=auto", "resume.mode=finetune"], r"resume\.mode=finetune: resume\.from=auto looks for a run"),
        (["resume.from=auto", "trainer.overfit_below=0.1"], r"resume\.from=auto: the one-batch test .* keeps no state"),
    ],
)
def test_options_that_contradict_one_another_are_refused(tiny: dict[str, Any], words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(changed(tiny, *words))


class Interrupted:
    """A run that was asked to end after the first of its three epochs."""

    def __init__(self, cfg: dict[str, Any]) -> None:
        self.output = Path(cfg["paths"]["output"])
        self.uri = fresh_database(self.output)
        self.client = MlflowClient(self.uri)
        self.experiment_id = preflight(self.uri, "flatfix")
        self.result = train(cfg, report=self._stop)
        self.run_id, self.folder = self.result.run_id, Path(self.result.folder)
        self._cfg = changed(cfg, f"resume.from={self.run_id}", f"paths.run={self.output}/runs/next")

    def config(self, *words: str) -> dict[str, Any]:
        return changed(self._cfg, *words)

    def start(self, *words: str, resume: str = "") -> Start:
        with starting(
            self.config(*words, *([f"resume.from='{resume}'"] if resume else [])), self.experiment_id
        ) as start:
            return start

    @property
    def state(self) -> Path:
        return max((self.folder / "checkpoints").glob("state-*.ckpt"))

    def _stop(self, epochs: int, value: float) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return False


@pytest.fixture(scope="module")
def one_run(tiny: dict[str, Any]) -> Interrupted:
    return Interrupted(tiny)


@pytest.fixture
def run(one_run: Interrupted) -> Interrupted:
    shutil.rmtree(one_run.output / "runs/next", ignore_errors=True)
    return one_run


def test_an_interrupted_run_says_in_mlflow_where_it_is_and_what_it_was(run: Interrupted) -> None:
    tags = run.client.get_run(run.run_id).data.tags
    assert (tags["resumable"], tags["folder"]) == ("true", str(run.folder))
    assert tags["config_digest"] == config_digest(run.config())
    assert {"num_resumes", "resumed_from"}.isdisjoint(tags)


def test_a_run_goes_on_by_its_id_by_its_state_and_by_its_config(
    run: Interrupted, capsys: pytest.CaptureFixture[str]
) -> None:
    by_id, by_state, by_config = run.start(), run.start(resume=str(run.state)), run.start(resume="auto")
    assert by_id == by_state == by_config
    assert (by_id.run_id, by_id.folder, by_id.state, by_id.num_resumes) == (run.run_id, run.folder, run.state, 1)
    assert by_id.has_facts
    assert not (run.output / "runs/next").exists()
    said = capsys.readouterr().out
    assert said.count(f"resume: run {run.run_id} goes on from step 6 (epochs done: 1), in {run.folder} (for a new") == 3


def test_the_run_goes_on_in_its_own_folder_with_its_own_batch_size(run: Interrupted) -> None:
    cfg = run.config("dataset.batch_size=auto")
    settled = run.start("dataset.batch_size=auto").settle(cfg)
    assert (settled["paths"]["run"], settled["dataset"]["batch_size"]) == (str(run.folder), 16)
    assert {**cfg["paths"], "run": settled["paths"]["run"]} == settled["paths"]


def test_another_config_is_refused_with_each_option_that_differs(run: Interrupted) -> None:
    with pytest.raises(UserError, match=r"the run has another config\. .*resume\.mode=branch") as refusal:
        run.start("seed=1", "optimizer.lr=0.5", "~scheduler.final_ratio", "report=true")
    lines = str(refusal.value).splitlines()[1:]
    assert [line.strip() for line in lines] == [
        "optimizer.lr=0.002 there, 0.5 here",
        "scheduler.final_ratio=0.0 there, absent here",
        "seed=0 there, 1 here",
    ]


def test_auto_without_a_run_of_this_config_begins_a_new_one_and_says_so(
    run: Interrupted, capsys: pytest.CaptureFixture[str]
) -> None:
    start = run.start("seed=1", resume="auto")
    assert (start.run_id, start.state, start.folder) == (None, None, run.output / "runs/next")
    assert "resume: no unfinished run of this config has an intact state on this machine; a new run" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("tag", ["resumed_from", "sweep"])
def test_auto_does_not_go_on_with_a_run_that_is_more_than_its_config(run: Interrupted, tag: str) -> None:
    run.client.set_tag(run.run_id, tag, RUN_ID)
    try:
        assert run.start(resume="auto").run_id is None
        assert run.start().run_id == run.run_id
    finally:
        run.client.delete_tag(run.run_id, tag)


def test_auto_does_not_go_on_with_another_dataset(run: Interrupted, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = run.config("resume.from=auto")
    held = Record.read(run.folder)
    assert held and held.origin == "cnn from random weights"
    for digest, run_id in ((held.dataset_digest, run.run_id), ("d" * 64, None)):
        with starting(cfg, run.experiment_id, digest) as start:
            assert (start.run_id, start.origin) == (run_id, held.origin if run_id else None)
    assert f"resume: run {run.run_id} has this config too, began with another dataset" in capsys.readouterr().out


def test_auto_begins_again_in_the_folder_of_a_run_that_died_before_its_first_state(run: Interrupted) -> None:
    states = run.folder / "checkpoints"
    away = states.rename(run.folder / "away")
    try:
        assert run.start(resume="auto").run_id is None
        start = run.start(f"paths.run={run.folder}", resume="auto")
        assert (start.run_id, start.folder, start.state, start.weights) == (run.run_id, run.folder, None, None)
        with pytest.raises(UserError, match="no intact state"):
            run.start()
    finally:
        away.rename(states)


def test_a_damaged_record_is_none(run: Interrupted, capsys: pytest.CaptureFixture[str]) -> None:
    record = run.folder / "run.json"
    whole = record.read_bytes()
    try:
        for damaged in (b"", whole[:99], b"[]", b"\x00" * 9):
            record.write_bytes(damaged)
            assert run.start(resume="auto").run_id is None
            assert f"{record}: damaged" in capsys.readouterr().err
    finally:
        record.write_bytes(whole)


def test_what_happened_before_the_lock_was_held_is_seen(run: Interrupted, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = resume._lock

    def finish(folder: Path, held: ExitStack) -> bool:
        run.client.update_run(run.run_id, status="FINISHED")
        return lock(folder, held)

    monkeypatch.setattr(resume, "_lock", finish)
    try:
        for source in ("auto", run.run_id):
            run.client.update_run(run.run_id, status="KILLED")
            if source == "auto":
                assert run.start(resume=source).run_id is None
            else:
                with pytest.raises(UserError, match="the run is FINISHED"):
                    run.start(resume=source)
    finally:
        run.client.update_run(run.run_id, status="KILLED")


def test_a_run_that_died_before_it_was_registered_is_found(run: Interrupted) -> None:
    def found(*words: str) -> tuple[str, Path] | None:
        return resume.unregistered(run.config("resume.from=auto", *words), run.experiment_id)

    run.client.set_tag(run.run_id, "registration_pending", "true")
    try:
        assert found() is None
        run.client.update_run(run.run_id, status="FINISHED")
        assert found() == (run.run_id, run.folder)
        assert [found("seed=1"), found("registry.register=false"), found(f"resume.from={run.run_id}")] == [None] * 3
        assert resume.unregistered(run.config("resume.from=auto"), run.experiment_id, "d" * 64) is None
        with locked(run.folder / ".lock"):
            assert found() is None
    finally:
        run.client.update_run(run.run_id, status="KILLED")
        run.client.delete_tag(run.run_id, "registration_pending")


def test_a_run_that_another_process_trains_is_left_alone(run: Interrupted, capsys: pytest.CaptureFixture[str]) -> None:
    program = "import sys, time; from pathlib import Path; from flatfix.files import locked\n"
    program += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program, run.folder / ".lock"], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout and other.stdout.readline() == b"held\n"
            assert run.start(resume="auto").run_id is None
            assert (
                f"run {run.run_id} has this config too, is trained by another process, and" in capsys.readouterr().out
            )
            with pytest.raises(UserError, match="another process trains this run"):
                run.start()
        finally:
            other.kill()
    assert run.start(resume="auto").run_id == run.run_id  # the lock went with its owner


def test_the_folder_is_held_for_as_long_as_the_run_lasts(run: Interrupted) -> None:
    with starting(run.config(), preflight(run.uri, "flatfix")) as start:
        with pytest.raises(BlockingIOError), locked(start.folder / ".lock", waits=False):
            pass
        with pytest.raises(UserError, match="another process trains this run"):
            run.start()
    with locked(start.folder / ".lock", waits=False):
        pass


def test_a_damaged_state_gives_way_to_the_one_before_and_none_at_all_is_refused(
    run: Interrupted, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = run.state
    whole = newest.read_bytes()
    later = newest.with_name(newest.name.replace("00000006", "00000007"))
    try:
        later.write_bytes(whole[: len(whole) // 2])
        assert run.start().state == newest
        assert f"{later}: damaged" in capsys.readouterr().err
        with pytest.raises(UserError, match=rf"resume\.from={re.escape(str(later))}: not an intact state"):
            run.start(resume=str(later))
        for path in (run.folder / "checkpoints").glob("state-*.ckpt"):
            path.write_bytes(whole[:100])
        with pytest.raises(UserError, match=r"no intact state in .*checkpoints\. resume\.mode=finetune starts"):
            run.start()
        assert run.start(resume="auto").run_id is None
    finally:
        for path in (run.folder / "checkpoints").glob("state-*.ckpt"):
            path.unlink()
        newest.write_bytes(whole)


def test_what_names_nothing_is_refused(run: Interrupted) -> None:
    for source, message in (
        ("nowhere.ckpt", r"resume\.from=nowhere\.ckpt: no such file, and not the id of a run"),
        ("0" * 32, r"tracking\.uri=sqlite:.* has no run 0{32}\. Is it kept elsewhere\?"),
        (str(run.folder), rf"a folder\. Its run is resume\.from={run.run_id}"),
        (str(run.folder / "checkpoints" / "best.ckpt"), "not an intact state"),
    ):
        with pytest.raises(UserError, match=message):
            run.start(resume=source)


def test_a_run_whose_folder_is_not_here_is_refused_and_a_copy_of_it_too(run: Interrupted, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run.folder, moved)
    with pytest.raises(UserError, match=rf"is a copy: run {run.run_id} lies in {re.escape(str(run.folder))}\."):
        run.start(resume=str(moved / "checkpoints" / run.state.name))
    away = run.folder.rename(run.folder.with_name("away"))
    try:
        with pytest.raises(UserError, match=r"(?s)its folder .* is not on this machine.*mlflow artifacts download"):
            run.start()
        assert run.start(resume="auto").run_id is None
    finally:
        away.rename(run.folder)


def test_a_state_without_its_run_only_starts_new_runs(run: Interrupted, tmp_path: Path) -> None:
    state = Path(shutil.copy(run.state, tmp_path))
    with pytest.raises(UserError, match=r"lies in no folder of a run\. resume\.mode=branch"):
        run.start(resume=str(state))
    start = run.start("resume.mode=branch", resume=str(state))
    assert (start.run_id, start.state, start.resumed_from) == (None, state, str(state))
    with pytest.raises(UserError, match=r"holds a cnn, and model\.name=resnet18\. Choose model\.name=cnn"):
        run.start("resume.mode=branch", "model.name=resnet18", resume=str(state))


def test_a_run_that_has_finished_or_was_thrown_away_is_refused(run: Interrupted) -> None:
    run.client.update_run(run.run_id, status="FINISHED")
    try:
        with pytest.raises(UserError, match=r"the run is FINISHED\. .* resume\.mode=finetune or branch"):
            run.start()
        assert run.start(resume="auto").run_id is None
        run.client.delete_run(run.run_id)
        with pytest.raises(
            UserError, match=rf"lies in MLflow's trash\. .*\n.*mlflow runs restore --run-id {run.run_id}"
        ):
            run.start()
        run.client.restore_run(run.run_id)
    finally:
        run.client.update_run(run.run_id, status="KILLED")


def test_a_branch_takes_the_state_and_refuses_what_the_state_holds(run: Interrupted) -> None:
    start = run.start("resume.mode=branch", "augment=inspection", "trainer.max_epochs=5")
    assert (start.run_id, start.state, start.folder) == (None, run.state, run.output / "runs/next")
    assert start.tags()["resumed_from"] == run.run_id
    with pytest.raises(UserError, match=r"a full state goes with these options\. .*finetune") as refusal:
        run.start("resume.mode=branch", "optimizer.lr=0.5", "trainer.devices=2", "trainer.ema_decay=0.9", "seed=1")
    assert [line.strip() for line in str(refusal.value).splitlines()[1:]] == [
        "optimizer.lr=0.002 there, 0.5 here",
        "trainer.devices=1 there, 2 here",
        "trainer.ema_decay=null there, 0.9 here",
    ]
    with pytest.raises(
        UserError, match=r"its training is over after step 6 \(epochs done: 1\)\. Raise trainer\.max_ep"
    ):
        run.start("resume.mode=branch", "trainer.max_epochs=1")


def test_fine_tuning_takes_the_best_weights_of_a_run_or_any_file_of_them(run: Interrupted, tmp_path: Path) -> None:
    start = run.start("resume.mode=finetune", "seed=1")
    best = run.folder / "checkpoints" / "best.ckpt"
    assert (start.state, start.weights, start.resumed_from) == (None, best, run.run_id)
    torch.save({"stem.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    assert run.start("resume.mode=finetune", resume=str(tmp_path / "weights.pth")).weights == tmp_path / "weights.pth"
    with pytest.raises(UserError, match=r"holds a cnn, and model\.name=resnet18"):
        run.start("resume.mode=finetune", "model.name=resnet18")


def test_another_dataset_or_other_classes_are_refused() -> None:
    manifest: Any = SimpleNamespace(version="v2", digest="d" * 64, classes=("flat", "full"))
    Start(Path(), "", run_id=RUN_ID, dataset_digest="d" * 64, classes=("flat", "full")).check_dataset(manifest)
    with pytest.raises(UserError, match=rf"dataset\.version=v2: its digest is d{{12}}, and run {RUN_ID} began with e"):
        Start(Path(), "", run_id=RUN_ID, dataset_digest="e" * 64).check_dataset(manifest)
    with pytest.raises(UserError, match=r"has the classes flat, full, and the state is of ok, defective\..*finetune"):
        Start(Path(), "", classes=("ok", "defective")).check_dataset(manifest)


def test_the_command_that_goes_on_is_the_one_that_began_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(HydraConfig, "initialized", lambda: False)
    assert resume.command(RUN_ID) == f"resume.from={RUN_ID}"
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    words = ["train.py", "model=cnn", "tracking.uri=http://bob:s3cret@host:5000", "resume.from=auto", "a.b='c d'"]
    monkeypatch.setattr(sys, "argv", words)
    assert resume.command(RUN_ID) == (
        "python train.py model=cnn 'tracking.uri=http://bob:***@host:5000' "
        f"""'a.b='"'"'c d'"'"'' resume.from={RUN_ID}"""
    )
