"""A hundred swaps of the model under constant load."""

from __future__ import annotations

import statistics
from pathlib import Path

import psutil
import pytest

from tests.helpers.callers import Callers, offline, some_pictures
from tests.helpers.flatfix_server import FlatfixServer
from tests.helpers.server import wait_until
from tests.helpers.serving import promoted, two_packages

pytestmark = pytest.mark.slow

NUM_CLIENTS = 16
SETTLED = 0.2  # of the swaps, after which memory is as it will be
NUM_COMPARED = 10  # swaps at either end, whose median counts
SWAP_TIMEOUT_S = 60


@pytest.mark.parametrize(("runtime", "num_swaps"), [("onnxruntime", 100), ("openvino", 30)])
def test_swaps_under_load_fail_no_request_mix_no_answer_and_keep_no_memory(
    tmp_path: Path, runtime: str, num_swaps: int
) -> None:
    packages = two_packages(tmp_path / "packages")
    shelf, versions = promoted(tmp_path / "shelf", packages)
    numbers = [str(version.number) for version in versions]
    pictures = some_pictures()
    said = dict(zip(numbers, (offline(package, runtime, pictures) for package in packages), strict=True))
    held: list[int] = []
    server = FlatfixServer(tmp_path / "server", shelf.uri, f"runtime={runtime}", "precision=fp32", "poll_s=0.1")
    with server, Callers(server.url, pictures, NUM_CLIENTS) as callers:
        process = psutil.Process(server.pid)
        for swap in range(1, num_swaps + 1):
            callers.wait_for_more(NUM_CLIENTS)
            shelf.point("production", versions[swap % 2])
            wait_until(lambda: len(callers.versions) > swap, SWAP_TIMEOUT_S, f"swap {swap}")  # noqa: B023
            callers.wait_for_more(NUM_CLIENTS)  # so that no request is left that the old model answers
            held.append(process.memory_info().rss)
    callers.check(said)
    assert callers.versions == [numbers[swap % 2] for swap in range(num_swaps + 1)], "a version came back after a swap"
    settled = held[int(SETTLED * num_swaps) :]
    before, after = (statistics.median(some) for some in (settled[:NUM_COMPARED], settled[-NUM_COMPARED:]))
    print(f"{runtime}: {callers.num_answers:,} answers, {before / 2**20:.0f} MiB, then {after / 2**20:.0f} MiB")
    assert after == pytest.approx(before, rel=0.05)
