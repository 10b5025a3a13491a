"""Predict: from a checkpoint and pictures without labels to a table of decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flatfix.config.exit_codes import ExitCode
from flatfix.console import complain, progress, say
from flatfix.data.ahead import map_ahead
from flatfix.data.unlabelled import Unlabelled, find_pictures
from flatfix.errors import UserError, enumerated
from flatfix.inference.decode import UnreadableImageError, load
from flatfix.models.classifier import Classifier, ClassifierSpec, load_checkpoint
from flatfix.prediction.table import Row, check_ending, writing

BEST = Path("checkpoints", "best.ckpt")
BATCHES_AHEAD = 4  # decoded while the model is busy
REVIEW = "review"
UNREADABLE = "unreadable"


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
    device = _device(cfg["accelerator"])
    checkpoint = _checkpoint(cfg["checkpoint"])
    pictures = find_pictures(cfg["input"])
    classifier = load_checkpoint(checkpoint)
    say(f"model: {checkpoint} ({describe(classifier.spec)})")
    outcome = predict(classifier, pictures, output, batch_size=cfg["batch_size"], device=device)
    say(f"{output}: {outcome.num_pictures:,} pictures, {outcome.num_review:,} for review")
    if not outcome.unreadable:
        return ExitCode.DONE
    complain(f"{len(outcome.unreadable):,} of them cannot be read:{enumerated(outcome.unreadable)}")
    return ExitCode.NO


def predict(
    classifier: Classifier, pictures: Unlabelled, output: Path, *, batch_size: int, device: torch.device
) -> Outcome:
    """Write a row for every picture, in their order, and hold a few batches in memory at a time.

    A row has the class that the classifier's decision chooses, the calibrated probability of this class, and what
    follows: the class, `review` where a person should see the picture, or `unreadable`.

    The classifier runs in float32. Its decision was fitted on what training computed, which under `bf16-mixed` is a
    little less exact: a picture at the very threshold can come out on the other side of it.

    Args:
        classifier: its spec says how a picture is prepared, and how its probabilities become an answer.
        pictures: what to predict.
        output: `.parquet` or `.csv`; an existing file is replaced when all is done.
        batch_size: pictures a step.
        device: where the classifier runs.

    Raises:
        UserError: when no picture can be read, and when the model predicts nan.
    """
    classifier.eval().to(device)
    num_review, unreadable = 0, []
    inputs = map_ahead(
        partial(_input, pictures, classifier.spec), pictures.paths, BATCHES_AHEAD * batch_size, pictures.num_threads
    )
    with writing(output) as write, closing(inputs), progress("Predicting", len(pictures.paths)) as advance:
        pairs = zip(map(_printable, pictures.paths), inputs, strict=True)
        while batch := list(islice(pairs, batch_size)):
            rows = _rows(classifier, batch, device)
            write(rows)
            advance(len(rows))
            num_review += sum(row.decision == REVIEW for row in rows)
            unreadable += [f"{path}: {reason}" for path, reason in batch if isinstance(reason, str)]
        if len(unreadable) == len(pictures.paths):
            raise UserError(f"input: none of {len(unreadable):,} pictures can be read:{enumerated(unreadable)}")
    return Outcome(len(pictures.paths), num_review, unreadable)


def describe(spec: ClassifierSpec) -> str:
    """Say in one line what a classifier is, and where it draws the line."""
    decision = spec.decision
    parts = [spec.name, f"{len(spec.classes)} classes", f"{spec.image_size} px"]
    if decision.positive is not None:
        parts.append(f"{spec.classes[decision.positive]} from probability {decision.threshold:.4g} on")
    if decision.review is not None:
        parts.append("review from {:.4g} to {:.4g}".format(*decision.review))
    return ", ".join(parts)


def _output(output: str, source: str) -> Path:
    path = Path(output).expanduser()
    check_ending(path)
    if path.is_dir():
        raise UserError(f"output={output}: is a folder. Name a file in it.")
    if path.resolve() == Path(source).expanduser().resolve():
        raise UserError(f"output={output}: is the list of the pictures itself. Name another file.")
    return path


def _device(accelerator: str) -> torch.device:
    has_gpu = torch.cuda.is_available()
    if accelerator == "gpu" and not has_gpu:
        raise UserError("accelerator=gpu: torch sees no GPU here. Use accelerator=auto or cpu.")
    return torch.device("cuda" if has_gpu and accelerator != "cpu" else "cpu")


def _checkpoint(checkpoint: str) -> Path:
    """Return the file that is meant: of a run's folder, its best checkpoint."""
    path = Path(checkpoint).expanduser()
    if path.is_dir() and (path / BEST).is_file():
        return path / BEST
    if not path.is_file():
        fault = f"a folder without {BEST}" if path.is_dir() else "no such file or folder"
        raise UserError(f"checkpoint={checkpoint}: {fault}. Name a checkpoint, or the folder of a run that has ended.")
    return path


def _input(pictures: Unlabelled, spec: ClassifierSpec, path: str) -> NDArray[np.uint8] | str:
    """Return a picture as training saw it, `[size, size, 3]`, or why it cannot be read."""
    try:
        return load(pictures.read(path), spec.image_size, spec.resize)
    except UnreadableImageError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _rows(
    classifier: Classifier, batch: Sequence[tuple[str, NDArray[np.uint8] | str]], device: torch.device
) -> list[Row]:
    images = [image for _, image in batch if not isinstance(image, str)]
    answers = iter(_answers(classifier, np.stack(images), device) if images else [])
    return [
        Row(path, None, None, UNREADABLE) if isinstance(image, str) else Row(path, *next(answers))
        for path, image in batch
    ]


def _answers(classifier: Classifier, images: NDArray[np.uint8], device: torch.device) -> list[tuple[str, float, str]]:
    """Return class, calibrated probability of the class, and decision of each picture of `[N, H, W, 3]`."""
    classes, decision = classifier.spec.classes, classifier.spec.decision
    with torch.inference_mode():
        logits = classifier(torch.from_numpy(images).to(device)).logits
        probabilities = logits.softmax(dim=1).cpu().numpy()
    if np.isnan(probabilities).any():
        raise UserError("checkpoint: the model predicts nan, its training diverged. Choose another.")
    calibrated = decision.calibrate(probabilities)
    labels = decision.predict(calibrated)
    return [
        (classes[label], float(row[label]), REVIEW if needs_review else classes[label])
        for label, row, needs_review in zip(labels, calibrated, decision.needs_review(calibrated), strict=True)
    ]


def _printable(path: str) -> str:
    """Write out the bytes of a file's name that are not UTF-8, which neither a table nor a terminal can hold."""
    return path.encode(errors="backslashreplace").decode()
