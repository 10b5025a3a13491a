"""Choose what runs a model: of what its card permits and this machine has, the fastest."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatfix.errors import UserError, one_of
from flatfix.files import needing_room, replacing
from flatfix.inference.card import Card, Permit
from flatfix.inference.package import MODEL, Package
from flatfix.inference.runtime import PAIRS, Pair, Runtime, available, check, open_each, open_runtime, version_of
from flatfix.machine import cpu_name, num_cores

AUTO = "auto"
SCHEMA_VERSION = 1
CALIBRATION_S = 1.0
TURN_MS = 50.0  # of one runtime, before it is the next one's turn
MIN_TURNS = 3


def select(
    package: Package,
    runtime: str = AUTO,
    precision: str = AUTO,
    num_threads: int | None = None,
    cache_dir: Path | None = None,
) -> tuple[Runtime, str]:
    """Load the model of a package with the runtime and the precision that are asked for.

    Where `auto` leaves a choice, it is measured for about a second which answers one picture fastest. The outcome is
    kept below `cache_dir` for this package on this machine, with these versions of the runtimes and as many threads;
    without the file, it is measured again.

    Args:
        package: from `open_package`.
        runtime: `onnxruntime`, `openvino` or `auto`.
        precision: `fp32`, `bf16` or `auto`.
        num_threads: that compute one batch; all cores that this process may use by default.
        cache_dir: where choices are kept, or None.

    Returns:
        The loaded model, and in words why it is this one.

    Raises:
        UserError: when the card does not permit what is asked for, or this machine does not run it.
    """
    model, threads = package.path(MODEL), num_threads or num_cores()
    pairs = _candidates(package.card, runtime, precision)
    if len(pairs) == 1:
        asked = "" if (runtime, precision) == (AUTO, AUTO) else " of what was asked for"
        reason = (
            f"the only one{asked} that is permitted and installed" if AUTO in (runtime, precision) else "as asked for"
        )
        return open_runtime(model, *pairs[0], threads), reason
    facts = _facts(package, pairs, threads)
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    file = cache_dir / "runtimes" / f"{key}.json" if cache_dir else None
    if file and (times := _read(file, pairs)):
        return open_runtime(model, *_fastest(times), threads), f"{_told(times)}, measured before"
    opened = open_each(model, pairs, threads)
    times = measure(opened, package.reference().images[:1])
    if file:
        _write(file, times, facts)
    return opened[_fastest(times)], _told(times)


def permit_of(card: Card, runtime: str, precision: str) -> Permit:
    """Return the card's permit for a pair that it permits."""
    return next(permit for permit in card.permits if (permit.runtime, permit.precision) == (runtime, precision))


def measure(opened: Mapping[Pair, Runtime], images: NDArray[np.uint8]) -> dict[Pair, float]:
    """Return the median of milliseconds that each runtime takes for `images`, after about a second.

    They take turns, so that nothing else that the machine does falls on one of them alone.
    """
    times: dict[Pair, list[float]] = {pair: [] for pair in opened}
    start, num_turns = time.perf_counter(), 0
    while num_turns < MIN_TURNS or time.perf_counter() < start + CALIBRATION_S:
        for pair, runtime in opened.items():
            times[pair] += _turn(runtime, images)
        num_turns += 1
    return {pair: statistics.median(values) for pair, values in times.items()}


def _turn(runtime: Runtime, images: NDArray[np.uint8]) -> list[float]:
    runtime.run(images)  # the turn before this one left the caches cold
    times: list[float] = []
    while sum(times) < TURN_MS:
        start = time.perf_counter()
        runtime.run(images)
        times.append(1000 * (time.perf_counter() - start))
    return times


def _candidates(card: Card, runtime: str, precision: str) -> list[Pair]:
    one_of("runtime", runtime, (AUTO, *dict.fromkeys(pair.runtime for pair in PAIRS)))
    one_of("precision", precision, (AUTO, *dict.fromkeys(pair.precision for pair in PAIRS)))
    wanted = [pair for pair in PAIRS if runtime in (AUTO, pair.runtime) and precision in (AUTO, pair.precision)]
    if not wanted:
        check(runtime, precision)  # which there is not
    permitted = [Pair(permit.runtime, permit.precision) for permit in card.permits]
    pairs = [pair for pair in wanted if pair in permitted]
    if not pairs:
        raise UserError(
            f"runtime={runtime} precision={precision}: the card of the model does not permit it, because its answers "
            f"were not shown to be the same. Permitted: {', '.join(map(str, permitted)) or 'nothing'}"
        )
    here = available()
    return [pair for pair in pairs if pair in here] or [check(*pairs[0])]


def _facts(package: Package, pairs: Sequence[Pair], num_threads: int) -> dict[str, Any]:
    """Return everything that the speed depends on."""
    return {
        "package": package.digest,
        "pairs": [list(pair) for pair in pairs],
        "cpu": cpu_name(),
        "num_cores": num_cores(),
        "num_threads": num_threads,
        "versions": {name: version_of(name) for name in dict.fromkeys(pair.runtime for pair in pairs)},
    }


def _read(file: Path, pairs: Sequence[Pair]) -> dict[Pair, float] | None:
    # A file that another Flatfix wrote, or that was altered, is no loss: it is measured again.
    with suppress(OSError, ValueError, KeyError, TypeError):
        values = json.loads(file.read_bytes())
        if values["schema_version"] == SCHEMA_VERSION:
            times = values["milliseconds"]
            return {pair: float(times[str(pair)]) for pair in pairs if str(pair) in times}  # others do not run here
    return None


def _write(file: Path, times: Mapping[Pair, float], facts: Mapping[str, Any]) -> None:
    milliseconds = {str(pair): value for pair, value in times.items()}
    values = {"schema_version": SCHEMA_VERSION, "milliseconds": milliseconds, **facts}
    fix = "Free some, or set paths.cache to another disk."
    with needing_room("paths.cache", "the choice of a runtime", fix), replacing(file) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n")


def _fastest(times: Mapping[Pair, float]) -> Pair:
    return min(times, key=times.__getitem__)


def _told(times: Mapping[Pair, float]) -> str:
    ranked = sorted(times.items(), key=lambda item: item[1])
    return "the fastest here: " + ", ".join(f"{pair} {value:.2f} ms a picture" for pair, value in ranked)
