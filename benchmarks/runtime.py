"""Milliseconds a picture and pictures a second of one model in each runtime, and what `runtime=auto` makes of them.

Each model is exported untrained, for its speed does not depend on what it learned. All of its runtimes, with as many
threads as there are cores, answer the same pictures in turns within one run. `auto` may choose among all pairs of
runtime and precision that this machine runs: the card of a trained model permits those that answer as it was evaluated.

    python benchmarks/runtime.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from flatfix.inference.card import Permit
from flatfix.inference.package import CARD, MODEL, Package, open_package
from flatfix.inference.predictor import Predictor
from flatfix.inference.runtime import available, open_runtime
from flatfix.machine import num_cores
from flatfix.models.classifier import Classifier, build
from flatfix.models.export import Facts, export
from flatfix.tracking.provenance import Provenance

SEED = 0
BATCH_SIZES = (1, 8)
TURN_S = 0.5  # of one runtime, before it is the next one's turn

Pictures = NDArray[np.uint8]
Answer = Callable[[Pictures], NDArray[np.float32]]


class Case(NamedTuple):
    """Name a model and the pixels a side of its pictures."""

    model: str
    size: int

    def __str__(self) -> str:
        return f"{self.model} at {self.size}"


CASES = (Case("resnet18", 224), Case("resnet50", 224), Case("efficientnet_b0", 224), Case("wrn_28_10", 32))
QUICK = (Case("cnn", 32),)


def draw(count: int, size: int) -> Pictures:
    """Draw pictures of noise."""
    return np.random.default_rng(SEED).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def untrained(case: Case) -> Classifier:
    """Build a classifier of ten classes."""
    torch.manual_seed(SEED)
    classifier, _ = build(
        name=case.model,
        options={},
        pretrained=False,
        weights_file=None,
        normalise="data",
        classes=tuple("0123456789"),
        image_size=case.size,
        resize="squash",
        data_mean=(0.5, 0.5, 0.5),
        data_std=(0.25, 0.25, 0.25),
    )
    return classifier.eval()


def package_of(classifier: Classifier, folder: Path) -> Package:
    """Export a classifier, and permit every pair of runtime and precision that this machine runs."""
    pictures = draw(8, classifier.spec.image_size)
    facts = Facts(dataset={}, validation={}, test={}, qualification="untrained", run_id="", git_commit="")
    package = export(classifier, folder, pictures=pictures, reference=pictures, profile={}, facts=facts, config="")
    measured = {"num_pictures": 0, "top1_agreement": 1.0, "decision_agreement": 1.0, "max_difference": 0.0}
    permits = tuple(Permit(runtime=runtime, precision=precision, **measured) for runtime, precision in available())
    (folder / CARD).write_bytes(replace(package.card, permits=permits).to_json())
    return open_package(folder)


def runtimes_of(classifier: Classifier, package: Package) -> dict[str, Answer]:
    """Return what can answer, by name; torch.compile makes a program of its own for each batch size."""
    compiled = torch.compile(classifier, dynamic=False)

    def by(model: Callable[[torch.Tensor], Any]) -> Answer:
        return torch.inference_mode()(lambda images: model(torch.from_numpy(images)).logits.numpy())

    answers = {"torch eager": by(classifier), "torch.compile": by(compiled)}
    for pair in available():
        runtime = open_runtime(package.path(MODEL), *pair)
        answers[str(pair)] = lambda images, runtime=runtime: runtime.run(images)[0]
    return answers


def turn(answer: Answer, images: Pictures, duration_s: float) -> float:
    """Return the median milliseconds of a picture; the first batch is not counted, for the caches are another's."""
    answer(images)
    times: list[float] = []
    while sum(times) < duration_s:
        start = time.perf_counter()
        answer(images)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times) / len(images)


def measure(answers: dict[str, Answer], images: Pictures, rounds: int, duration_s: float) -> dict[str, list[float]]:
    """Return the milliseconds of a picture in each round; the order rotates, and a first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in answers}
    for number in range(rounds + 1):
        for shift in range(len(answers)):
            name = list(answers)[(number + shift) % len(answers)]
            milliseconds = turn(answers[name], images, duration_s)
            if number:
                times[name].append(milliseconds)
    return times


def compare(case: Case, rounds: int, duration_s: float) -> dict[str, Any]:
    """Return the times and the differences of all runtimes for a model, and what `auto` chooses."""
    classifier = untrained(case)
    with tempfile.TemporaryDirectory() as folder:
        package = package_of(classifier, Path(folder) / "package")
        answers = runtimes_of(classifier, package)
        times = {size: measure(answers, draw(size, case.size), rounds, duration_s) for size in BATCH_SIZES}
        chosen = Predictor(package)
        images = draw(max(BATCH_SIZES), case.size)
        expected = answers["torch eager"](images)
        return {
            "ms_per_picture": times,
            "max_difference_of_a_logit": {
                name: float(np.abs(answer(images) - expected).max()) for name, answer in answers.items()
            },
            "auto": f"{chosen.runtime} {chosen.precision}",
            "auto_because": chosen.reason,
        }


def report(case: Case, result: dict[str, Any]) -> None:
    """Print the table of a model."""
    medians = {
        size: {name: statistics.median(values) for name, values in times.items()}
        for size, times in result["ms_per_picture"].items()
    }
    print(f"\n{case}")
    columns = "".join(f"{f'batch {size}: ms a picture':>24}{'pictures/s':>12}" for size in medians)
    print(f"{'median of the rounds':20}{columns}{'a logit differs by':>20}")
    for name, difference in result["max_difference_of_a_logit"].items():
        row = "".join(f"{times[name]:24.2f}{1000 / times[name]:12,.1f}" for times in medians.values())
        print(f"{name:20}{row}{difference:20.1g}")
    chosen = result["auto"]
    for size, times in medians.items():
        best = min(times, key=times.__getitem__)
        away = f"{times[chosen] / times[best] - 1:.1%} behind {best}" if best != chosen else "the best measured"
        print(f"runtime=auto: {chosen}, at batch {size} {away}")
    print(f"  ({result['auto_because']})")


def main() -> None:
    """Measure, print the tables, and write them as JSON beside this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one small model, to see that it works; writes nothing")
    options = parser.parse_args()
    torch.set_num_threads(num_cores())
    machine = Provenance.collect(Path(__file__).parent, ["torch", "onnxruntime", "openvino"])
    load = os.getloadavg()[0]
    print(f"\n{machine.cpu}, {num_cores()} threads, {options.rounds} rounds, seed {SEED}; {machine.packages}")
    print(f"load of the machine at the start: {load:.1f}")
    results = {}
    for case in QUICK if options.quick else CASES:
        results[str(case)] = compare(case, 1 if options.quick else options.rounds, 0.05 if options.quick else TURN_S)
        report(case, results[str(case)])
    if options.quick:
        return
    facts = {
        "cpu": machine.cpu,
        "num_threads": num_cores(),
        "load": load,
        "packages": machine.packages,
        "seed": SEED,
        "rounds": options.rounds,
        "cases": results,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
