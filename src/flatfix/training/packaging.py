"""Make of a run that qualified what is registered and served: the model package."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flatfix.config.text import from_yaml
from flatfix.console import say
from flatfix.data.cache import Examples
from flatfix.data.version import open_version
from flatfix.errors import UserError
from flatfix.evaluation import predictions
from flatfix.evaluation.profile import profile
from flatfix.evaluation.report import read_numbers
from flatfix.inference.package import Package
from flatfix.models.classifier import Classifier, load_checkpoint
from flatfix.models.export import ExportError, Facts, export
from flatfix.registry.packages import as_mlflow_model
from flatfix.registry.register import PACKAGE
from flatfix.tracking.connection import connect, in_one_line, told_as_user_error
from flatfix.training.dataset import open_store_of, pictures_of
from flatfix.training.quiet import quieten

# What a run logs, and its package can be made of.
RESOLVED, CHECKPOINT = "config/resolved.yaml", "checkpoints/best.ckpt"
NUMBERS, VALIDATION = "evaluation/metrics.json", "evaluation/validation.parquet"

# Reduced precision is permitted on the word of 1,000 pictures or more; each costs the time of every runtime.
NUM_PICTURES = 1024
NUM_REFERENCE = 32
NUM_PROFILED = 256  # features; probabilities, which cost nothing, are profiled of the whole validation split


def package(
    checkpoint: Path,
    folder: Path,
    pictures: Mapping[str, Examples],
    calibrated: NDArray[np.float64],
    *,
    facts: Facts,
    config: str,
) -> Package:
    """Export a checkpoint into `folder`, as MLflow's ONNX flavour lays it out.

    Args:
        checkpoint: one that knows its decision.
        folder: the package's, which must not exist.
        pictures: the decoded splits `val` and `test`.
        calibrated: `[N, C]`, what the model says of `val`.
        facts: what the card tells of the run.
        config: the run's config as YAML, to fine-tune from.
    """
    say("package: exporting to ONNX and checking it against the checkpoint")
    classifier = load_checkpoint(checkpoint)
    seen = _spread(pictures["val"], NUM_PROFILED)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".package-") as temporary:
        exported = export(
            classifier,
            Path(temporary, "package"),
            pictures=_judging(pictures),
            reference=_spread(pictures["val"], NUM_REFERENCE),
            profile=profile(seen, calibrated, _features(classifier, seen)),
            facts=facts,
            config=config,
        )
        return as_mlflow_model(exported, folder)


def package_run(uri: str, run_id: str) -> None:
    """Make the package of a run that has finished and qualified, from what MLflow keeps of it, and log it there.

    A multirun calls it for the runs that it registers: a package can take longer than the training.

    Args:
        uri: where MLflow keeps the run.
        run_id: the run.

    Raises:
        UserError: when MLflow does not answer or lacks what the run logged, when the store lacks the version of the
            dataset, or when the model cannot be exported.
    """
    quieten()
    with told_as_user_error(uri):
        client = connect(uri)
        tags = client.get_run(run_id).data.tags
    with tempfile.TemporaryDirectory() as temporary:
        kept, folder = Path(temporary, "kept"), Path(temporary, PACKAGE)
        kept.mkdir()
        try:
            client.download_artifacts(run_id, "", str(kept))
            _package_again(kept, folder, run_id, tags)
            client.log_artifacts(run_id, str(folder), PACKAGE)
        except UserError:
            raise
        except ExportError as error:
            raise UserError(str(error)) from error
        except Exception as error:  # whatever an artifact store raises
            raise UserError(f"run_id={run_id}: its package cannot be made and kept ({in_one_line(error)}).") from error


def _package_again(kept: Path, folder: Path, run_id: str, tags: Mapping[str, str]) -> None:
    """Make the package of a run from the artifacts that were kept of it."""
    if missing := [name for name in (RESOLVED, CHECKPOINT, NUMBERS, VALIDATION) if not (kept / name).is_file()]:
        raise UserError(f"run_id={run_id}: MLflow lacks its {', '.join(missing)}, which could not be sent.")
    config = (kept / RESOLVED).read_text(encoding="utf-8")
    cfg, numbers = from_yaml(config), read_numbers(kept / NUMBERS)
    version = open_version(open_store_of(cfg), cfg["dataset"]["name"], cfg["dataset"]["version"])
    package(
        kept / CHECKPOINT,
        folder,
        {split: pictures_of(cfg, version, split) for split in ("val", "test")},
        predictions.read(kept / VALIDATION).probabilities,
        facts=Facts(
            dataset={key: getattr(version.manifest, key) for key in ("name", "version", "digest")},
            validation=numbers["validation"],
            test=numbers["test"],
            qualification=tags["qualification"],
            run_id=run_id,
            git_commit=tags["git_commit"],
        ),
        config=config,
    )


def _judging(pictures: Mapping[str, Examples]) -> NDArray[np.uint8]:
    """Return pictures to compare runtimes on, first those of test: half of each split, or what there is."""
    num_test, num_val = len(pictures["test"]), len(pictures["val"])
    half = NUM_PICTURES // 2
    chosen_test = min(num_test, max(half, NUM_PICTURES - num_val))
    chosen_val = min(num_val, NUM_PICTURES - chosen_test)
    return np.concatenate([_spread(pictures["test"], chosen_test), _spread(pictures["val"], chosen_val)])


def _spread(examples: Examples, num: int) -> NDArray[np.uint8]:
    """Return at most `num` pictures, evenly spread over a split."""
    rows = np.unique(np.linspace(0, len(examples) - 1, min(num, len(examples))).round().astype(np.int64))
    return np.asarray(examples.inputs[rows])


def _features(classifier: Classifier, pictures: NDArray[np.uint8], batch_size: int = 32) -> NDArray[np.float32]:
    with torch.inference_mode():
        parts = [
            classifier.features(torch.from_numpy(pictures[start : start + batch_size])).numpy()
            for start in range(0, len(pictures), batch_size)
        ]
    features: NDArray[np.float32] = np.concatenate(parts)
    return features
