"""Predict: from a model and pictures without labels to a table of decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatfix.config.exit_codes import ExitCode
from flatfix.console import complain, progress, say
from flatfix.data.unlabelled import Unlabelled, find_pictures, printable
from flatfix.errors import UserError, enumerated
from flatfix.prediction.model import Model
from flatfix.prediction.table import Row, check_ending, writing

BATCHES_AHEAD = 4  # decoded while the model is busy
REVIEW = "review"
UNREADABLE = "unreadable"

# What only one of the two kinds of model reads, and the value that says nothing.
OF_CHECKPOINT = {"accelerator": "auto"}
OF_ALIAS = {"runtime": "auto", "precision": "auto", "registry.name": None}


@dataclass(frozen=True)
class Outcome:
    """Count what a table of predictions holds.

    Attributes:
        num_pictures: rows of the table.
        num_review: pictures that a person should see.
        unreadable: path and reason of each picture that cannot be read.
    """

    num_pictures: int
    num_review: int
    unreadable: list[str]


def run(cfg: Mapping[str, Any]) -> ExitCode:
    """Predict what the config names, and say how it went.

    Raises:
        UserError: naming the option that does not work.
    """
    output = _output(cfg["output"], cfg["input"])
    model = _model(cfg)
    pictures = find_pictures(cfg["input"])
    say(f"model: {model.describe()}")
    outcome = predict(model, pictures, output, batch_size=cfg["batch_size"])
    say(f"{output}: {outcome.num_pictures:,} pictures, {outcome.num_review:,} for review")
    if not outcome.unreadable:
        return ExitCode.DONE
    complain(f"{len(outcome.unreadable):,} of them cannot be read:{enumerated(outcome.unreadable)}")
    return ExitCode.NO


def predict(model: Model, pictures: Unlabelled, output: Path, *, batch_size: int) -> Outcome:
    """Write a row for every picture, in their order, and hold a few batches in memory at a time.

    A row has the class that the model's decision chooses, the calibrated probability of this class, and what follows:
    the class, `review` where a person should see the picture, or `unreadable`.

    Args:
        model: what predicts.
        pictures: what to predict.
        output: `.parquet` or `.csv`; an existing file is replaced when all is done.
        batch_size: pictures a step.

    Raises:
        UserError: when no picture can be read, and when the model predicts nan.
    """
    num_review, unreadable = 0, []
    inputs = pictures.decoded(model.image_size, model.resize, BATCHES_AHEAD * batch_size)
    with writing(output) as write, closing(inputs), progress("Predicting", len(pictures.paths)) as advance:
        pairs = zip(map(printable, pictures.paths), inputs, strict=True)
        while batch := list(islice(pairs, batch_size)):
            rows = _rows(model, batch)
            write(rows)
            advance(len(rows))
            num_review += sum(row.decision == REVIEW for row in rows)
            unreadable += [f"{path}: {reason}" for path, reason in batch if isinstance(reason, str)]
        if len(unreadable) == len(pictures.paths):
            raise UserError(f"input: none of {len(unreadable):,} pictures can be read:{enumerated(unreadable)}")
    return Outcome(len(pictures.paths), num_review, unreadable)


def _output(output: str, source: str) -> Path:
    path = Path(output).expanduser()
    check_ending(path)
    if path.is_dir():
        raise UserError(f"output={output}: is a folder. Name a file in it.")
    if path.resolve() == Path(source).expanduser().resolve():
        raise UserError(f"output={output}: is the list of the pictures itself. Name another file.")
    return path


def _model(cfg: Mapping[str, Any]) -> Model:
    """Open the model that is meant; torch is imported for a checkpoint only."""
    if (cfg["checkpoint"] is None) == (cfg["alias"] is None):
        raise UserError("checkpoint, alias: give one of them. alias=production is the registered model that is live.")
    if cfg["alias"] is None:
        _refuse(cfg, OF_ALIAS, "alias")
        from flatfix.prediction.checkpoint import open_checkpoint

        return open_checkpoint(cfg["checkpoint"], cfg["accelerator"])
    _refuse(cfg, OF_CHECKPOINT, "checkpoint")
    from flatfix.prediction.registered import open_registered

    return open_registered(
        cfg["tracking"]["uri"],
        cfg["registry"]["name"],
        cfg["alias"],
        runtime=cfg["runtime"],
        precision=cfg["precision"],
        cache_dir=Path(cfg["paths"]["cache"]),
    )


def _refuse(cfg: Mapping[str, Any], options: Mapping[str, Any], of: str) -> None:
    """Refuse options that would be ignored."""
    for option, silent in options.items():
        parent, _, name = option.rpartition(".")
        value = (cfg[parent] if parent else cfg)[name]
        if value != silent:
            raise UserError(f"{option}={value}: only {of} reads it. Leave it out.")


def _rows(model: Model, batch: Sequence[tuple[str, NDArray[np.uint8] | str]]) -> list[Row]:
    images = [image for _, image in batch if not isinstance(image, str)]
    answers = iter(_answers(model, np.stack(images)) if images else [])
    return [
        Row(path, None, None, UNREADABLE) if isinstance(image, str) else Row(path, *next(answers))
        for path, image in batch
    ]


def _answers(model: Model, images: NDArray[np.uint8]) -> list[tuple[str, float, str]]:
    """Return class, calibrated probability of the class, and decision of each picture of `[N, H, W, 3]`."""
    said = model.predict(images)
    if np.isnan(said.probabilities).any():
        raise UserError(f"{model.source}: the model predicts nan, its training diverged. Choose another.")
    return [
        (model.classes[label], float(row[label]), REVIEW if needs_review else model.classes[label])
        for label, row, needs_review in zip(said.labels, said.probabilities, said.needs_review, strict=True)
    ]
