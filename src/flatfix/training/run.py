"""Train a classifier: from a validated config to a tested checkpoint and its run in MLflow."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flatfix.config.exit_codes import ExitCode
from flatfix.console import complain, say
from flatfix.data.manifest import Manifest
from flatfix.data.store import Store
from flatfix.data.version import DatasetVersion, open_version
from flatfix.errors import UserError
from flatfix.registry.register import PENDING, register
from flatfix.tracking.connection import preflight
from flatfix.tracking.run import RESUMABLE, Run, Status
from flatfix.training import batch_size, resume, snapshots
from flatfix.training.dataset import held_digest, open_dataset, open_store_of, positive_index
from flatfix.training.devices import Place, check_gpus, find_place
from flatfix.training.facts import log_code, log_facts, optimizer_name, without_password
from flatfix.training.fit import Prepared, Report, Task, fit, judge_best, prepare
from flatfix.training.interruption import Interrupted, interruptible
from flatfix.training.logger import RunLogger
from flatfix.training.outcome import Setting, conclude
from flatfix.training.plan import Plan, make_plan
from flatfix.training.quiet import quieten
from flatfix.training.ranks import following, leading
from flatfix.training.result import RunResult
from flatfix.training.resume import SWEEP, Record, Start

Config = Mapping[str, Any]


def train(cfg: Config, *, report: Report | None = None, began: Callable[[str], None] | None = None) -> RunResult:
    """Train, test and track one run; the one place that sees the whole config.

    Args:
        cfg: the validated config.
        report: is told after every epoch how many are done and the validation metric that is the sweep's objective, by
            default the monitored one; when it answers True, training ends there, and the run as one that was pruned.
        began: is told the id of the MLflow run as soon as there is one.

    Raises:
        UserError: for an option that does not work, as far as possible before any data is read.
    """
    quieten()
    place = find_place(cfg["trainer"])
    if place.rank:
        return train_along(place)
    check_gpus(cfg["trainer"], place)
    cfg = {**cfg, "trainer": {**cfg["trainer"], "devices": place.num_local}}
    resume.check(cfg)
    plan = make_plan(cfg)
    store = open_store_of(cfg)
    experiment_id = preflight(cfg["tracking"]["uri"], cfg["tracking"]["experiment"])
    digest = held_digest(cfg, store) if cfg["resume"]["from"] == resume.AUTO else None
    if unregistered := resume.unregistered(cfg, experiment_id, digest):
        run_id, folder = unregistered
        _register(cfg, run_id)
        return RunResult(run_id, str(folder), "FINISHED", ExitCode.DONE)
    with resume.starting(cfg, experiment_id, digest) as start:
        return _train(start.settle(cfg), place, start, plan, store, experiment_id, report, began)


def train_along(place: Place) -> RunResult:
    """Fit and judge as another process than rank 0, which says what, and does all the rest."""
    quieten()
    folder = ""
    try:
        with following(place) as ranks:
            told = ranks.told()
            cfg = told["cfg"]
            check_gpus(cfg["trainer"], place)
            folder, dataset = cfg["paths"]["run"], cfg["dataset"]
            version = open_version(open_store_of(cfg), dataset["name"], dataset["version"])
            positive = positive_index(cfg, version.manifest.classes)
            state, weights = (Path(told[name]) if told[name] else None for name in ("state", "weights"))
            start = Start(Path(folder), told["config_digest"], state=state, weights=weights)
            task = Task(cfg, make_plan(cfg), version, positive, start, ranks)
            fitted = fit(task, prepare(task), None, (lambda *_: False) if told["reports"] else None)
            if not fitted.callbacks.is_pruned:
                judge_best(task, fitted)
    except Interrupted:
        # Rank 0 still saves: a code of failure here would have srun and torchrun end it at once.
        return RunResult("", folder, "KILLED", ExitCode.DONE)
    return RunResult("", folder, "FINISHED", ExitCode.DONE)


def _train(
    cfg: Config,
    place: Place,
    start: Start,
    plan: Plan,
    store: Store,
    experiment_id: str,
    report: Report | None,
    began: Callable[[str], None] | None,
) -> RunResult:
    """Train where the run starts from, in its folder."""
    run = None
    try:
        with leading(place) as ranks, interruptible():
            version = open_dataset(cfg, plan, store)
            start.check_dataset(version.manifest)
            positive = positive_index(cfg, version.manifest.classes)
            plan.loss(tuple(version.manifest.splits["train"].values()))  # refuses class weights before the run begins
            cfg = batch_size.settle(cfg, plan, version, place)
            run = _resume(cfg, start) if start.run_id else _start(cfg, start, version, experiment_id)
            if began:
                began(run.run_id)
            commit = _record(cfg, start, run, version.manifest)
            setting = Setting(cfg, plan, version, positive, start, ranks, run, commit)
            ranks.at_worst = partial(_end, run, "FAILED")
            ranks.tell(_told(setting, report))
            prepared = _with_first_origin(setting, prepare(setting))
            result = conclude(setting, prepared, fit(setting, prepared, RunLogger(run), report))
    except Interrupted as interruption:
        return _interrupted(cfg, start, run, str(interruption))
    except Exception as error:
        if run:
            run.log_text(traceback.format_exc(), "traceback.txt")
            _end(run, "FAILED", f"{type(error).__name__}: {error}")
        raise
    registers = result.package is not None and cfg["registry"]["register"]
    if registers:
        run.set_tags({PENDING: "true"})
    _end(run, "FINISHED")
    if registers:
        _register(cfg, run.run_id)
    return result


def _told(setting: Setting, report: Report | None) -> dict[str, Any]:
    """Return what the other processes of a run need to know, which is no password."""
    manifest, start = setting.version.manifest, setting.start
    cfg = without_password(setting.cfg)
    return {
        "cfg": {**cfg, "dataset": {**cfg["dataset"], "version": manifest.version}},
        "config_digest": start.config_digest,
        "state": start.state and str(start.state),
        "weights": start.weights and str(start.weights),
        "reports": report is not None,
    }


def _start(cfg: Config, start: Start, version: DatasetVersion, experiment_id: str) -> Run:
    tracking, optimizer = cfg["tracking"], optimizer_name(cfg["optimizer"]).lower()
    sweep = cfg["sweep"]
    tags = {str(key): str(value) for key, value in tracking["tags"].items()}
    if sweep["parent_run_id"]:
        tags[SWEEP] = sweep["name"]
    if sweep["trial"] is not None:
        tags["trial"] = str(sweep["trial"])
    return Run.start(
        tracking["uri"],
        experiment_id,
        name=tracking["run_name"] or f"{version.manifest.name} {cfg['model']['name']} {optimizer}",
        tags=tags | start.tags(),
        buffer_dir=start.folder,
        system_metrics=tracking["system_metrics"],
        parent_run_id=sweep["parent_run_id"],
    )


def _resume(cfg: Config, start: Start) -> Run:
    assert start.run_id
    tracking = cfg["tracking"]
    run = Run.resume(tracking["uri"], start.run_id, start.folder, system_metrics=tracking["system_metrics"])
    run.set_tags(start.tags())
    return run


def _record(cfg: Config, start: Start, run: Run, manifest: Manifest) -> str:
    """Record what the run is, once, and the code of every start of it; return the commit."""
    if start.has_facts:
        return log_code(run, f"code/resume-{start.num_resumes}")
    Record(run.run_id, manifest.digest, without_password(cfg)).write(start.folder)
    return log_facts(run, cfg, manifest)


def _with_first_origin(setting: Setting, prepared: Prepared) -> Prepared:
    """Return it with where the weights came from when the run began, which its folder keeps."""
    if setting.start.origin:
        return replace(prepared, origin=setting.start.origin)
    if record := Record.read(setting.folder):
        replace(record, origin=prepared.origin).write(setting.folder)
    return prepared


def _interrupted(cfg: Config, start: Start, run: Run | None, reason: str) -> RunResult:
    folder = cfg["paths"]["run"]
    if run:
        is_resumable = snapshots.is_any(Path(folder) / snapshots.CHECKPOINTS)
        run.set_tags({RESUMABLE: str(is_resumable).lower()})
        _end(run, "KILLED", reason)
        say(f"{reason}: run {run.run_id} is KILLED in MLflow")
        if is_resumable and not cfg["sweep"]["parent_run_id"]:
            say(f"go on: {resume.command(run.run_id)}")
    elif start.run_id:
        say(f"{reason}, before run {start.run_id} went on: {resume.command(start.run_id)}")
    else:
        say(f"{reason}, before the run began")
    return RunResult(run.run_id if run else start.run_id or "", folder, "KILLED", ExitCode.INTERRUPTED)


def _end(run: Run, status: Status, reason: str | None = None) -> None:
    unsent = run.end(status, reason)
    if unsent:
        say(unsent)


def _register(cfg: Config, run_id: str) -> None:
    """Make a candidate of a run that qualified."""
    try:
        registration = register(cfg["tracking"]["uri"], run_id, cfg["registry"]["name"])
    except UserError as error:  # the run is done and kept: only its registration waits
        complain(f"not registered: {error}\nLater: python promote.py action=register run_id={run_id}")
        return
    say(registration.describe())
