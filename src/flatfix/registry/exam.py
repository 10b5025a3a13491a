"""What registered versions answer to the same test pictures, none of which they have seen before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flatfix.data.index import rows
from flatfix.data.store import Store
from flatfix.data.version import DatasetVersion, is_held, open_newest, open_version
from flatfix.evaluation.answers import Answers
from flatfix.registry.evaluation import evaluation_of
from flatfix.registry.packages import fetch_package
from flatfix.registry.versions import Version
from flatfix.tracking.connection import connect

SPLIT = "test"  # it judges, and has chosen nothing


class UnfitError(Exception):
    """Tell why versions cannot sit an exam, or not the same one."""


@dataclass(frozen=True)
class Place:
    """Say where versions, datasets and what is made of them are.

    Attributes:
        uri: of MLflow.
        experiment: for the runs of evaluations.
        store: of the dataset versions.
        cache_dir: folder of fetched packages and decoded pictures.
        outdir: folder of one folder an evaluation.
    """

    uri: str
    experiment: str
    store: Store
    cache_dir: Path
    outdir: Path


@dataclass(frozen=True, eq=False)
class Exam:
    """Hold what versions answer to the same pictures.

    Attributes:
        dataset: whose test split was asked.
        answers: of each version, with the same pictures in the same order.
        notes: what a reader should know of the pictures.
    """

    dataset: DatasetVersion
    answers: tuple[Answers, ...]
    notes: tuple[str, ...]

    @property
    def pictures(self) -> str:
        """Which pictures they are, in words."""
        what = f"{len(self.answers[0].ids):,} test pictures of {_title(self.dataset)}"
        return "; ".join((what, *self.notes))


def sit(versions: Sequence[Version], place: Place) -> Exam:
    """Let versions answer the test split of the newest version of the dataset that the first of them was trained on.

    An evaluation that MLflow holds is read, a missing one is run. Pictures that any of the versions has seen in
    training or validation are left out: what a model has learnt by heart says nothing of it. They are known by their
    sha256, whatever dataset version and split they are in.

    Raises:
        UnfitError: when a version does not know all classes, two differ in theirs, or no picture is left.
        DamagedPackageError: when a package was altered.
        UserError: when the store does not hold the dataset, or MLflow does not hold a package.
    """
    dataset = open_newest(place.store, versions[0].dataset_name)
    answers = [_answers(version, dataset, place) for version in versions]
    for version, each in zip(versions, answers, strict=True):
        if (each.classes, each.decision.positive) != (answers[0].classes, answers[0].decision.positive):
            numbers = f"{versions[0].number} and {version.number}"
            raise UnfitError(f"versions {numbers} do not have the same classes in the same order, and one to look for")
    seen, notes = _seen(versions, place.store)
    index = rows(dataset.index(["id", "sha256"]), ("id", "sha256"))
    learnt = {id for id, sha256 in index if sha256 in seen}
    ids = [id for id in answers[0].ids if id not in learnt]
    if not ids:
        raise UnfitError(f"every test picture of {_title(dataset)} was seen in training")
    if len(ids) < len(answers[0].ids):
        notes.append(f"{len(answers[0].ids) - len(ids):,} left out, seen in training")
    return Exam(dataset, tuple(_only(each, ids) for each in answers), tuple(notes))


def _answers(version: Version, dataset: DatasetVersion, place: Place) -> Answers:
    package = fetch_package(connect(place.uri), version, place.cache_dir)
    counts = dataset.manifest.splits[SPLIT]
    unknown = [name for name, num in counts.items() if num and name not in package.card.classes]
    if unknown:
        raise UnfitError(f"version {version.number} does not know {', '.join(unknown)} of {_title(dataset)}")
    return evaluation_of(
        place.uri,
        version,
        package,
        dataset,
        SPLIT,
        experiment=place.experiment,
        outdir=place.outdir / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}",
        cache_dir=place.cache_dir,
    )


def _seen(versions: Sequence[Version], store: Store) -> tuple[set[str], list[str]]:
    """Return the sha256 of what versions saw in training or validation, and notes on whom that is unknown of."""
    seen: set[str] = set()
    notes = []
    for version in versions:
        name, number = version.dataset_name, version.dataset_version
        trained_on = open_version(store, name, number) if is_held(store, name, number) else None
        if trained_on is None or trained_on.manifest.digest != version.dataset_digest:
            notes.append(f"what version {version.number} saw is unknown, as the store lacks its {name}/{number}")
            continue
        index = trained_on.index(["split", "sha256"])
        seen.update(sha256 for split, sha256 in rows(index, ("split", "sha256")) if split != SPLIT)
    return seen, notes


def _only(answers: Answers, ids: list[str]) -> Answers:
    """Return the answers to these pictures, in this order."""
    row_of = {id: row for row, id in enumerate(answers.ids)}
    kept: NDArray[np.int64] = np.array([row_of[id] for id in ids])
    return replace(
        answers,
        ids=ids,
        labels=answers.labels[kept],
        probabilities=answers.probabilities[kept],
        calibrated=answers.calibrated[kept],
        predictions=answers.predictions[kept],
        needs_review=answers.needs_review[kept],
    )


def _title(dataset: DatasetVersion) -> str:
    return f"{dataset.manifest.name}/{dataset.manifest.version}"
