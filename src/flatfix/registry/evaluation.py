"""Offline evaluation: a registered version, as it is served, on pictures whose classes are known."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from flatfix.config.exit_codes import ExitCode
from flatfix.console import complain, progress, say, table
from flatfix.data.store import open_store
from flatfix.data.version import DatasetVersion, open_newest, open_version
from flatfix.errors import UserError, enumerated
from flatfix.evaluation import predictions
from flatfix.evaluation.answers import Answers
from flatfix.evaluation.assessment import Assessment, assess
from flatfix.evaluation.confusion_csv import redraw
from flatfix.evaluation.predictions import Predictions
from flatfix.evaluation.report import PAGE
from flatfix.inference.card import Card
from flatfix.inference.decision import softmax
from flatfix.inference.package import Package
from flatfix.inference.predictor import Predictor
from flatfix.registry.labelled import LabelledPictures, of_files, of_version
from flatfix.registry.packages import fetch_package
from flatfix.registry.patience import patiently
from flatfix.registry.state import PRODUCTION, STAGING
from flatfix.registry.versions import Version, aliases, find, list_versions, registered_name
from flatfix.tracking.connection import connect, in_one_line, preflight, told_as_user_error
from flatfix.tracking.run import Run

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

Config = Mapping[str, Any]

PREDICTIONS = "predictions.parquet"
BATCH_SIZE = 64

# Options that say which pictures, and those that plot=only has no use for.
OF_DATASET = ("dataset.name", "dataset.version", "split")
OF_EVALUATION = ("version", "data", *OF_DATASET, "limit", "run_name", "registry.name")


@dataclass(frozen=True)
class Evaluation:
    """Say what was evaluated and what came of it.

    Attributes:
        version: what answered.
        runtime: which ran it, and in which precision.
        pictures: what it was asked, those that cannot be read included.
        assessment: of its answers.
        unreadable: path and reason of each picture that cannot be read.
    """

    version: Version
    runtime: str
    pictures: LabelledPictures
    assessment: Assessment
    unreadable: list[str]


def run(cfg: Config) -> ExitCode:
    """Evaluate what the config names, and say how it went.

    Returns:
        `NO` where some pictures cannot be read.

    Raises:
        UserError: naming the option that does not work.
    """
    _check_options(cfg)
    folder = Path(cfg["outdir"]).expanduser().absolute()
    if cfg["plot"]:
        say(f"confusion matrix: {redraw(Path(cfg['csv']).expanduser(), folder)}")
        return ExitCode.DONE
    uri, cache_dir = cfg["tracking"]["uri"], Path(cfg["paths"]["cache"])
    experiment_id = preflight(uri, cfg["tracking"]["experiment"])
    with told_as_user_error(uri):
        client = connect(uri)
        version = choose_version(client, registered_name(client, cfg["registry"]["name"]), cfg["alias"], cfg["version"])
    package = fetch_package(client, version, cache_dir)
    pictures = _pictures(cfg, version, package)
    predictor = Predictor(package, cfg["runtime"], cfg["precision"], cache_dir=cache_dir)
    evaluation = evaluate(predictor, version, pictures, folder, batch_size=cfg["batch_size"])
    _print(evaluation.assessment, folder)
    if cfg["log_mlflow"]:
        _log(uri, experiment_id, evaluation, folder, name=cfg["run_name"])
    unreadable = evaluation.unreadable
    if not unreadable:
        return ExitCode.DONE
    complain(f"{len(unreadable):,} of {len(pictures):,} pictures cannot be read:{enumerated(unreadable)}")
    return ExitCode.NO


def choose_version(client: MlflowClient, name: str, alias: str, number: int | None) -> Version:
    """Return the version that is meant; where nothing is in production, say what is meant instead.

    Raises:
        UserError: where there is none.
    """
    if number is not None:
        return find(client, name, str(number), "version")
    if alias != PRODUCTION or PRODUCTION in (known := aliases(client, name)):
        return find(client, name, alias)
    if STAGING in known:
        version, what = find(client, name, STAGING), f"@{STAGING}, version"
    elif versions := list_versions(client, name):
        version, what = versions[-1], "the newest version,"
    else:
        raise UserError(f"registry.name={name}: has no version yet.")
    say(f"{name} has nothing in production: {what} {version.number}, is evaluated")
    return version


def evaluation_of(
    uri: str,
    version: Version,
    package: Package,
    dataset: DatasetVersion,
    split: str = "test",
    *,
    experiment: str,
    outdir: Path,
    cache_dir: Path,
) -> Answers:
    """Return a version's answers to a whole split: those of its last evaluation, else of one that is run now.

    An evaluation that is run is logged as `evaluate.py` logs it, and linked to the version. Pictures are in the order
    of `data.cache.decoded`, which depends on their ids alone. Of `probabilities` and `calibrated` both are calibrated.

    Args:
        uri: of MLflow.
        version: what answers.
        package: its own.
        dataset: whose pictures are asked.
        split: train, val or test.
        experiment: where a run of an evaluation goes.
        outdir: folder for what an evaluation writes; it is made only for one that is run.
        cache_dir: where training keeps decoded pictures.

    Raises:
        UserError: for classes that the model does not know, and a split without pictures.
    """
    client = connect(uri)
    with told_as_user_error(uri):  # the version may have been evaluated since its tags were read
        tags = patiently(lambda: client.get_model_version(version.name, str(version.number))).tags
    run_id = tags.get(_tag(dataset.manifest.digest, split))
    answers = _recorded(client, run_id, package) if run_id else None
    if answers is not None:
        return answers
    say(
        f"version {version.number} has no evaluation on {dataset.manifest.name} {dataset.manifest.version} {split} yet:"
    )
    pictures = of_version(dataset, split, package.card, cache_dir)
    experiment_id = preflight(uri, experiment)
    predictor = Predictor(package, cache_dir=cache_dir)
    _log(uri, experiment_id, evaluate(predictor, version, pictures, outdir), outdir)
    return _answers(outdir / PREDICTIONS, package)


def evaluate(
    predictor: Predictor,
    version: Version,
    pictures: LabelledPictures,
    folder: Path,
    *,
    batch_size: int = BATCH_SIZE,
) -> Evaluation:
    """Predict pictures and write the report on them into a folder; what cannot be read is left out.

    Raises:
        UserError: where no picture can be read.
    """
    card, runtime = predictor.package.card, f"{predictor.runtime} {predictor.precision}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"outdir={folder}: cannot be made ({error.strerror or error}). Name another folder.") from error
    say(f"model: {version.name} version {version.number} ({card.model_name}, {card.image_size} px)")
    say(f"runtime: {runtime} ({predictor.reason})")
    say(f"pictures: {pictures.name}, {len(pictures):,}")
    logits, readable, unreadable = _predict(predictor, pictures, batch_size)
    if not readable:
        option = "data=" if "data" in pictures.facts else ""
        what = f"{option}{pictures.name}: none of {len(pictures):,} pictures can be read:"
        raise UserError(f"{what}{enumerated(unreadable)}")
    seen = pictures.select(readable) if unreadable else pictures
    assessment = assess(
        folder,
        Predictions(seen.ids, seen.labels, softmax(logits), card.classes),
        card.decision,
        pictures=cast("NDArray[np.uint8]", seen.pixels),  # or what stands for them
        card=_sections(version, card, runtime, pictures, num_unreadable=len(unreadable)),
        title=_title(version, pictures),
    )
    return Evaluation(version, runtime, pictures, assessment, unreadable)


def _check_options(cfg: Config) -> None:
    """Refuse options that would be ignored."""
    if cfg["plot"]:
        if cfg["csv"] is None:
            raise UserError("csv: plot=only needs a table with columns label and prediction.")
        _refuse(cfg, OF_EVALUATION, "plot=only reads csv and nothing else")
        return
    _refuse(cfg, ("csv",), "only plot=only reads it")
    if cfg["data"] is not None:
        _refuse(cfg, OF_DATASET, f"data={cfg['data']} takes its place")
    if not cfg["log_mlflow"]:
        _refuse(cfg, ("run_name",), "log_mlflow=false makes no run")
    if cfg["version"] is not None and cfg["alias"] != PRODUCTION:
        raise UserError(f"alias={cfg['alias']}: version={cfg['version']} takes its place. Leave one of them out.")


def _refuse(cfg: Config, options: Sequence[str], why: str) -> None:
    for option in options:
        value: Any = cfg
        for name in option.split("."):
            value = value[name]
        if value is not None:
            raise UserError(f"{option}={value}: {why}. Leave it out.")


def _pictures(cfg: Config, version: Version, package: Package) -> LabelledPictures:
    limit = cfg["limit"]
    if cfg["data"] is not None:
        return of_files(cfg["data"], package.card).limited(limit, cfg["seed"])
    store = open_store(cfg["store"], cfg["paths"]["cache"])
    name = cfg["dataset"]["name"] or version.dataset_name
    number = cfg["dataset"]["version"]
    dataset = open_version(store, name, number) if number else open_newest(store, name)
    gigabytes = None if limit is None else 0  # for a few pictures, not all of them are decoded
    pictures = of_version(
        dataset, cfg["split"] or "test", package.card, Path(cfg["paths"]["cache"]), gigabytes=gigabytes
    )
    return pictures.limited(limit, cfg["seed"])


def _predict(
    predictor: Predictor, pictures: LabelledPictures, batch_size: int
) -> tuple[NDArray[np.float32], list[int], list[str]]:
    """Return the logits `[K, C]` of what can be read, its rows, and path and reason of what cannot."""
    logits = [np.empty((0, len(predictor.package.card.classes)), np.float32)]
    readable: list[int] = []
    unreadable: list[str] = []
    with closing(pictures.each()) as each, progress("Predicting", len(pictures)) as advance:
        numbered = enumerate(each)
        while batch := list(islice(numbered, batch_size)):
            images = {row: picture for row, picture in batch if not isinstance(picture, str)}
            if images:
                logits.append(predictor.predict(np.stack(list(images.values()))).logits)
            readable += images
            unreadable += [f"{pictures.ids[row]}: {reason}" for row, reason in batch if isinstance(reason, str)]
            advance(len(batch))
    return np.concatenate(logits), readable, unreadable


def _title(version: Version, pictures: LabelledPictures) -> str:
    return f"{version.name} version {version.number} on {pictures.name}"


def _sections(
    version: Version, card: Card, runtime: str, pictures: LabelledPictures, *, num_unreadable: int
) -> dict[str, dict[str, str]]:
    """Return what a reader of the report should know of the model and of the pictures."""
    model = {
        "registered model": version.name,
        "version": f"{version.number} ({version.stage})",
        "model": card.model_name,
        "trained on": f"{version.dataset_name} {version.dataset_version}",
        "by MLflow run": version.run_id,
        "runtime": runtime,
        "git commit": card.git_commit,
    }
    facts = {name.replace("_", " "): fact for name, fact in pictures.facts.items()}
    if num_unreadable:
        facts["left out"] = f"{num_unreadable:,} of {len(pictures):,}, which cannot be read"
    return {"Model": model, "Pictures": facts}


def _print(assessment: Assessment, folder: Path) -> None:
    metrics, intervals = assessment.metrics, assessment.intervals
    say("")
    table(
        ["", *metrics],
        [
            ["value", *(f"{value:.4f}" for value in metrics.values())],
            ["95 % from", *(f"{intervals[name][0]:.4f}" for name in metrics)],
            ["95 % to", *(f"{intervals[name][1]:.4f}" for name in metrics)],
        ],
    )
    say(f"report: {folder / PAGE}")


def _log(uri: str, experiment_id: str, evaluation: Evaluation, folder: Path, name: str | None = None) -> None:
    """Log an evaluation as a run, and link one of a whole split to the version once all of it has arrived."""
    version, pictures, assessment = evaluation.version, evaluation.pictures, evaluation.assessment
    tags = {
        "kind": "evaluation",
        "registered_model": version.name,
        "model_version": str(version.number),
        "runtime": evaluation.runtime,
        **pictures.facts,
    }
    run = Run.start(uri, experiment_id, name=name or _title(version, pictures), tags=tags, buffer_dir=folder)
    bounds = {
        f"{metric}_{side}": bound
        for metric, interval in assessment.intervals.items()
        for side, bound in zip(("low", "high"), interval, strict=True)
    }
    _, calibration_error = assessment.calibration_error
    others = {"tested_samples": assessment.num_pictures, "calibration_error": calibration_error}
    run.log_metrics({**assessment.metrics, **bounds, **others}, 0)
    for file in assessment.files:
        run.log_artifact(file)
    unsent = run.end("FINISHED")
    if unsent:
        say(unsent)
    elif pictures.is_whole:
        tag = _tag(pictures.facts["dataset_digest"], pictures.facts["split"])
        with told_as_user_error(uri):
            client = connect(uri)
            patiently(lambda: client.set_model_version_tag(version.name, str(version.number), tag, run.run_id))
    say(f"run: {run.run_id}")


def _tag(digest: str, split: str) -> str:
    """Name the tag of a version that says which run evaluated it on a whole split."""
    return f"evaluation.{digest[:16]}.{split}"


def _recorded(client: MlflowClient, run_id: str, package: Package) -> Answers | None:
    """Return the answers that a run of an evaluation holds, or None where they are lost."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return _answers(Path(client.download_artifacts(run_id, PREDICTIONS, folder)), package)
        except Exception as error:  # whatever an artifact store raises
            say(f"the evaluation in run {run_id} cannot be read ({in_one_line(error)})")
            return None


def _answers(path: Path, package: Package) -> Answers:
    """Read a table of predictions, whose probabilities are calibrated."""
    return Answers.of(predictions.read(path), replace(package.card.decision, temperature=1.0))
