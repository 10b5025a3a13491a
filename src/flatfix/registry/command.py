"""What `promote.py` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flatfix.config.exit_codes import ExitCode
from flatfix.console import say
from flatfix.data.store import open_store
from flatfix.errors import UserError
from flatfix.evaluation.comparison import compare
from flatfix.evaluation.metrics import METRICS
from flatfix.registry import display
from flatfix.registry.choose import metric_named, pick
from flatfix.registry.exam import Place, UnfitError, sit
from flatfix.registry.gates import check_gates, run_gates
from flatfix.registry.journal import GateResult
from flatfix.registry.moves import Choice, rollback, to_production, to_staging
from flatfix.registry.register import register
from flatfix.registry.state import PRODUCTION, STAGING
from flatfix.registry.versions import CANDIDATE, Version, find, registered_name
from flatfix.registry.view import Registry, View
from flatfix.tracking.connection import connect, preflight, told_as_user_error

Config = Mapping[str, Any]

# The actions that read an option; another one would ignore it.
READERS = {
    "metric": ("promote",),
    "stage": ("promote",),
    "version": ("promote",),
    "force": ("promote",),
    "dataset.version": ("promote",),
    "reason": ("promote", "rollback"),
    "dry_run": ("promote", "rollback"),
    "to": ("rollback",),
    "run_id": ("register",),
    "a": ("compare",),
    "b": ("compare",),
}
NEEDED = {"register": ("run_id",), "compare": ("a", "b")}
DEFAULTS = {"stage": STAGING, "force": False, "dry_run": False}  # None for every other option
METRIC = "accuracy"  # that paired tests compare by where no metric chose


def run(cfg: Config) -> ExitCode:
    """Do what `action` says with a registered model.

    Returns:
        `NO` where a gate refuses a version, and for a run that may not be registered.

    Raises:
        UserError: naming the option that does not work.
    """
    _check_options(cfg)
    uri, name = cfg["tracking"]["uri"], cfg["registry"]["name"]
    preflight(uri, cfg["tracking"]["experiment"])
    if cfg["action"] == "register":
        registration = register(uri, cfg["run_id"], name)
        say(registration.describe())
        return ExitCode.DONE if registration.version else ExitCode.NO
    with told_as_user_error(uri):
        client = connect(uri)
        registry = Registry.open(client, registered_name(client, name))
        if not cfg["dry_run"]:
            display.repairs(registry.settle()[1])
    match cfg["action"]:
        case "promote":
            return _promote(cfg, registry)
        case "rollback":
            outcome = rollback(registry, cfg["to"], why=cfg["reason"], dry_run=cfg["dry_run"])
            display.outcome(outcome, registry.name, is_dry_run=cfg["dry_run"])
        case "info":
            display.info(registry.name, registry.look())
        case "history":
            display.history(registry.name, registry.look().moves)
        case "compare":
            _compare(cfg, registry)
    return ExitCode.DONE


def _check_options(cfg: Config) -> None:
    """Refuse options that are missing, and those that would be ignored."""
    action, options = cfg["action"], {**cfg, "dataset.version": cfg["dataset"]["version"]}
    for option in NEEDED.get(action, ()):
        if options[option] is None:
            raise UserError(f"{option}: action={action} needs a value.")
    for option, readers in READERS.items():
        if action not in readers and options[option] != DEFAULTS.get(option):
            read_by = " and ".join(f"action={reader}" for reader in readers)
            raise UserError(f"{option}={_text(options[option])}: read only by {read_by}. Leave it out.")
    if action == "promote":
        _check_promotion(cfg)


def _check_promotion(cfg: Config) -> None:
    version, metric, stage = cfg["version"], cfg["metric"], cfg["stage"]
    if version is None and metric is None:
        raise UserError("metric: name the validation metric that chooses, such as metric=F1, or a version=N.")
    if version is not None and cfg["dataset"]["version"] is not None:
        raise UserError(
            f"dataset.version={cfg['dataset']['version']}: version={version} is chosen already. Leave it out."
        )
    if version is not None and metric is not None and (stage == STAGING or cfg["force"]):
        raise UserError(f"metric={metric}: version={version} is chosen already, and nothing is compared. Leave it out.")
    if not cfg["force"]:
        return
    if stage != PRODUCTION:
        raise UserError("force=true: no gate stands before staging. Leave it out, or add stage=production.")
    for option in ("version", "reason"):
        if not cfg[option]:
            raise UserError(f"{option}: force=true needs a value, for the history.")


def _promote(cfg: Config, registry: Registry) -> ExitCode:
    promotion, is_dry_run = _Promotion(cfg), cfg["dry_run"]
    if cfg["stage"] == STAGING:
        outcome = to_staging(registry, promotion.choose, why=cfg["reason"], dry_run=is_dry_run)
    else:
        outcome = to_production(
            registry, promotion.choose, promotion.judge, force=cfg["force"], why=cfg["reason"], dry_run=is_dry_run
        )
    display.outcome(outcome, registry.name, is_dry_run=is_dry_run)
    return ExitCode.NO if outcome.is_refused else ExitCode.DONE


class _Promotion:
    """Choose a version and judge it as the options say, and show how."""

    def __init__(self, cfg: Config) -> None:
        self._cfg = cfg
        self._metric = METRIC

    def choose(self, view: View) -> Choice:
        """Return the version that the options name, or the best of the stage below."""
        word, number, stage = self._cfg["metric"], self._cfg["version"], self._cfg["stage"]
        if number is not None:
            choice = Choice(_numbered(view, number))
            if word is not None:
                self._metric = metric_named(word, choice.version.validation)
        else:
            below = STAGING if stage == PRODUCTION else CANDIDATE
            versions = view.in_stage(below)
            if not versions:
                raise UserError(f"stage={stage}: {_nothing_in(below, view)}")
            picked = pick(versions, word, self._cfg["dataset"]["version"])
            display.ranking(picked, below)
            choice = Choice(picked.best, picked.metric, picked.value)
            self._metric = picked.metric
        if stage == PRODUCTION and not self._cfg["force"]:
            check_gates(self._cfg["gates"], self._metric)
        return choice

    def judge(self, challenger: Version, incumbent: Version | None) -> list[GateResult]:
        """Put a version to the gates."""
        results = run_gates(self._cfg["gates"], self._metric, challenger, incumbent, _place(self._cfg))
        display.gates(challenger, incumbent, results)
        return results


def _numbered(view: View, number: int) -> Version:
    for version in view.versions:
        if version.number == number:
            return version
    raise UserError(f"version={number}: no such version. There are {_listed(view)}.")


def _nothing_in(stage: str, view: View) -> str:
    if stage == CANDIDATE:
        what, fix = "there is no candidate", "Train a model that qualifies, or name a version=N."
    else:
        what, fix = f"no version is in {stage}", "Move the best candidate there first: promote.py metric=F1"
    return f"{what}. There are {_listed(view)}. {fix}"


def _listed(view: View) -> str:
    return ", ".join(f"{each.number} ({view.state.stage(each.number)})" for each in view.versions) or "no versions yet"


def _compare(cfg: Config, registry: Registry) -> None:
    with told_as_user_error(cfg["tracking"]["uri"]):
        a, b = (find(registry.client, registry.name, cfg[option], option) for option in ("a", "b"))
    if a.number == b.number:
        raise UserError(f"b={cfg['b']}: the same version as a={cfg['a']}. Name another one.")
    display.metrics([a, b])
    try:
        exam = sit([b, a], _place(cfg))
    except UnfitError as error:
        say(f"not compared on the same pictures: {error}")
        return
    comparisons = [compare(metric, *exam.answers, alpha=cfg["gates"]["alpha"]) for metric in METRICS]
    display.comparisons(a, b, exam, comparisons)


def _place(cfg: Config) -> Place:
    cache_dir = Path(cfg["paths"]["cache"])
    return Place(
        uri=cfg["tracking"]["uri"],
        experiment=cfg["tracking"]["experiment"],
        store=open_store(cfg["store"], cache_dir),
        cache_dir=cache_dir,
        outdir=Path(cfg["paths"]["output"]) / "evaluations",
    )


def _text(value: Any) -> str:
    """Return a value as the command line has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
