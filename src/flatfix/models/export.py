"""From a trained classifier to a model package, which needs neither torch nor Flatfix."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from flatfix.files import filling
from flatfix.inference.card import Card, Parity, Permit
from flatfix.inference.decision import Decision, softmax
from flatfix.inference.package import (
    CARD,
    CONFIG,
    MODEL,
    REFERENCE,
    WEIGHTS,
    Package,
    Reference,
    open_package,
    save_reference,
    sha256_of,
)
from flatfix.inference.runtime import ONNXRUNTIME, Pair, Runtime, available, open_each
from flatfix.models import weights
from flatfix.models.classifier import Classifier

OPSET = 20
MAX_BYTES = 2**31 - 1  # of a model in one file, which is one message of protobuf
PACKAGES = ("flatfix", "torch", "timm", "onnx", "onnxscript", "onnxruntime", "openvino")

RELATIVE_TOLERANCE = 1e-3  # of the largest logit: every runtime adds in an order of its own
NUM_TORCH_PICTURES = 256  # torch is the slowest of all
MIN_PICTURES, MAX_PICTURES = 1_000, 2_000  # that a reduced precision is judged on
MIN_AGREEMENT = 0.999
CHUNK = 32  # pictures at a time
SEED = 0

Answer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class ExportError(Exception):
    """Report a classifier that cannot be exported, or would answer otherwise once it was."""


@dataclass(frozen=True)
class Facts:
    """Hold what a package says of the run that it comes from; see `Card`."""

    dataset: Mapping[str, str]
    validation: Mapping[str, float]
    test: Mapping[str, float]
    qualification: str
    run_id: str
    git_commit: str


def export(
    classifier: Classifier,
    folder: Path,
    *,
    pictures: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    profile: Mapping[str, NDArray[np.float32]],
    facts: Facts,
    config: str,
) -> Package:
    """Write the package of a classifier, which stays as it is; the folder appears whole or not at all.

    The exported model must give the logits of torch. The pairs of runtime and precision that answer as it does on
    this machine are permitted: those with the same most probable class and the same decision for 99.9 % of the
    pictures; in fp32 besides with its logits within the tolerance, and in a reduced precision only where there are
    1,000 pictures and more.

    Args:
        classifier: on any device and in any mode; its spec knows the decision.
        folder: of the package, which must not exist or be empty.
        pictures: `[N, H, W, 3]` uint8, evaluation pictures, at most 2,000 of which are compared; may be memory-mapped.
        reference: `[K, H, W, 3]` uint8, a few validation pictures that a loader proves itself with.
        profile: what drift is measured against, see `evaluation.profile`.
        facts: what the card tells of the run.
        config: the run's, as YAML, to fine-tune from.

    Raises:
        ExportError: when torch cannot export the classifier, or the exported model does not give its logits.
        FileExistsError: when the folder holds something.
    """
    with filling(folder) as draft:
        model = _on_cpu(classifier)
        _write_onnx(model, draft / MODEL)
        sample = _Sample(reference, pictures)
        runtimes = open_each(draft / MODEL, available())
        baseline = sample.logits(_by_runtime(runtimes[ONNXRUNTIME]))
        parity = _parity(model, sample, baseline)
        permits = _permits(model.spec.decision, runtimes, sample, baseline, parity.tolerance)
        save_reference(draft / REFERENCE, Reference(reference, baseline.reference), dict(profile))
        weights.save(draft / WEIGHTS, model.state_dict(), model.spec.to_dict())
        (draft / CONFIG).write_text(config, encoding="utf-8")
        files = {name: sha256_of(draft / name) for name in (MODEL, REFERENCE, WEIGHTS, CONFIG)}
        (draft / CARD).write_bytes(_card(model, facts, parity, permits, files).to_json())
    return open_package(folder)


def _on_cpu(classifier: Classifier) -> Classifier:
    model = copy.deepcopy(classifier).cpu().float().requires_grad_(False).eval()
    # In channels_last torch would pool by `as_strided`: ten operators of ONNX that gather the features one by one.
    model.part_channels()
    return model


def _write_onnx(model: Classifier, path: Path) -> None:
    num_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    if num_bytes > MAX_BYTES:
        raise ExportError(f"model.name={model.spec.name}: {num_bytes / 1e9:.1f} GB of weights, and ONNX takes 2.1 GB")
    size = model.spec.image_size
    try:
        program = torch.onnx.export(
            model,
            (torch.zeros(2, size, size, 3, dtype=torch.uint8),),  # two: torch would take one for a constant
            dynamo=True,
            input_names=["images"],
            output_names=["logits", "features"],
            dynamic_shapes={"images": {0: "N"}},
            opset_version=OPSET,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]  # its own words only say at which step
        raise ExportError(f"model.name={model.spec.name}: torch cannot export it to ONNX ({reason})") from error
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # paths and lines of the code that it came from
    onnx.save_model(proto, path)


class _Logits(NamedTuple):
    """Hold the logits of the reference pictures `[K, C]` and of evaluation pictures `[N, C]`."""

    reference: NDArray[np.float32]
    evaluated: NDArray[np.float32]


class _Sample:
    """The reference pictures, and evaluation pictures in an order drawn by chance, the same every time."""

    def __init__(self, reference: NDArray[np.uint8], pictures: NDArray[np.uint8]) -> None:
        self.reference = reference
        self.pictures = pictures
        self.rows = np.random.default_rng(SEED).permutation(len(pictures))[:MAX_PICTURES]

    def logits(self, answer: Answer, limit: int = MAX_PICTURES) -> _Logits:
        """Ask for the logits of the reference and of the first evaluation pictures."""
        rows = self.rows[:limit]
        chunks = [answer(self.pictures[rows[start : start + CHUNK]]) for start in range(0, len(rows), CHUNK)]
        return _Logits(answer(self.reference), np.concatenate(chunks))


def _by_torch(model: Classifier) -> Answer:
    @torch.inference_mode()
    def answer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = model(torch.from_numpy(images)).logits.numpy()
        return logits

    return answer


def _by_runtime(runtime: Runtime) -> Answer:
    return lambda images: runtime.run(images)[0]


def _parity(model: Classifier, sample: _Sample, baseline: _Logits) -> Parity:
    expected = sample.logits(_by_torch(model), NUM_TORCH_PICTURES)
    parity = Parity(
        max_difference=_max_difference(baseline, expected),
        tolerance=RELATIVE_TOLERANCE * max(1.0, float(np.abs(expected.evaluated).max())),
        top1_agreement=_agreement(baseline.evaluated.argmax(axis=1), expected.evaluated.argmax(axis=1)),
        num_pictures=len(expected.evaluated),
    )
    if not parity.max_difference <= parity.tolerance:  # as nan is not
        raise ExportError(
            f"model.name={model.spec.name}: exported, it does not give the logits of torch: they differ by up to "
            f"{parity.max_difference:.3g}, where {parity.tolerance:.3g} is tolerated"
        )
    return parity


def _permits(
    decision: Decision, runtimes: Mapping[Pair, Runtime], sample: _Sample, baseline: _Logits, tolerance: float
) -> tuple[Permit, ...]:
    permits = []
    for pair, runtime in runtimes.items():
        is_reduced = pair.precision != "fp32"
        if is_reduced and len(sample.rows) < MIN_PICTURES:
            continue
        given = baseline if pair == ONNXRUNTIME else sample.logits(_by_runtime(runtime))
        permit = Permit(
            runtime=pair.runtime,
            precision=pair.precision,
            num_pictures=len(given.evaluated),
            top1_agreement=_agreement(given.evaluated.argmax(axis=1), baseline.evaluated.argmax(axis=1)),
            decision_agreement=_agreement(_decided(given.evaluated, decision), _decided(baseline.evaluated, decision)),
            max_difference=_max_difference(given, baseline),
        )
        agrees = min(permit.top1_agreement, permit.decision_agreement) >= MIN_AGREEMENT
        if agrees and permit.max_difference <= (math.inf if is_reduced else tolerance):  # as nan is not
            permits.append(permit)
    return tuple(permits)


def _agreement(some: NDArray[np.int64], others: NDArray[np.int64]) -> float:
    """Return the share of equal classes, as far as there are both."""
    num = min(len(some), len(others))
    return float((some[:num] == others[:num]).mean())


def _max_difference(some: _Logits, others: _Logits) -> float:
    """Return the largest difference of a logit, as far as there are both; nan where one is nan."""
    num = min(len(some.evaluated), len(others.evaluated))
    evaluated = np.abs(some.evaluated[:num] - others.evaluated[:num])
    return float(np.maximum(evaluated.max(), np.abs(some.reference - others.reference).max()))


def _decided(logits: NDArray[np.float32], decision: Decision) -> NDArray[np.int64]:
    return decision.predict(decision.calibrate(softmax(logits)))


def _card(
    model: Classifier, facts: Facts, parity: Parity, permits: tuple[Permit, ...], files: Mapping[str, str]
) -> Card:
    spec = model.spec
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):  # OpenVINO is an extra
            versions[name] = metadata.version(name)
    return Card(
        model_name=spec.name,
        classes=spec.classes,
        image_size=spec.image_size,
        resize=spec.resize,
        decision=spec.decision,
        **vars(facts),
        permits=permits,
        parity=parity,
        opset=OPSET,
        num_features=model.num_features,
        versions=versions,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        files=files,
    )
