from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flatfix.serving import multiproc
from flatfix.serving.metrics import Metrics, Scrapes
from tests.helpers.metric_workers import Worker

NAMES = (
    "http_requests_total http_request_duration_seconds http_requests_in_progress predicted_class_total queue_depth"
    " queue_wait_seconds batch_size decode_seconds inference_seconds model_version_info prediction_confidence"
    " rejected_total model_reloads_total feedback_total model_degraded journal_dropped_total"
).split()
ALONE = """
import os, sys
from pathlib import Path
from flatfix.serving import multiproc
{before}
multiproc.prepare(Path(sys.argv[1]))
from flatfix.serving.metrics import Metrics
metrics = Metrics()
{after}
print(metrics.render()[0].decode())
"""


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    one = Worker(tmp_path)
    yield one
    one.kill()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Worker]:
    one = Worker(tmp_path)
    yield one
    one.kill()


def used() -> Metrics:
    metrics = Metrics()
    metrics.requests.labels("POST", "/predict", "200").inc()
    metrics.duration.labels("POST", "/predict").observe(0.0124)
    metrics.in_progress.labels("/predict").inc()
    metrics.predicted.labels("3").inc(2)
    metrics.rejected.labels("overloaded").inc()
    metrics.reloads.labels("swapped").inc()
    metrics.show_model(name="pets", version="7", alias="production", runtime="openvino", precision="bf16")
    return metrics


def test_every_metric_of_the_contract_is_rendered_under_its_exact_name():
    text, media_type = used().render()

    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    samples = {sample.name for family in families.values() for sample in family.samples}
    missing = [name for name in NAMES if name not in samples and f"{name}_bucket" not in samples]
    assert not missing
    assert 'http_requests_total{handler="/predict",method="POST",status="200"} 1.0' in text.decode().splitlines()
    assert 'predicted_class_total{class_id="3"} 2.0' in text.decode().splitlines()
    assert media_type.startswith("text/plain; version=0.0.4")


def test_two_of_one_process_count_apart():
    first, second = used(), used()
    first.feedback.inc()
    assert b"feedback_total 1.0" in first.render()[0] and b"feedback_total 0.0" in second.render()[0]


def test_only_the_model_that_answers_now_is_shown():
    metrics = used()
    for _ in range(2):  # showing the same again changes nothing
        metrics.show_model(name="pets", version="8", alias="production", runtime="openvino", precision="fp32")

    shown = [line for line in metrics.render()[0].decode().splitlines() if line.startswith("model_version_info")]
    assert len(shown) == 1 and 'version="8"' in shown[0] and shown[0].endswith(" 1.0")


def test_workers_answer_for_all_and_a_killed_one_leaves_only_what_it_counted(worker: Worker, other: Worker):
    show = 'metrics.show_model(name="a", version="{}", alias="production", runtime="openvino", precision="fp32")'
    count = 'metrics.requests.labels("GET", "/", "200").inc()'
    busy = 'metrics.in_progress.labels("/").inc()'
    worker.do(count, busy, "metrics.queue_depth.set(2)", "metrics.batch_size.observe(4)", show.format(1))
    other.do(count, count, busy, "metrics.queue_depth.set(3)", "metrics.batch_size.observe(16)", show.format(1))
    both = other.do("metrics.degraded.set(1)", show.format(2))

    def versions(lines: list[str]) -> list[str]:
        return sorted(line.split('version="')[1] for line in lines if line.startswith("model_version_info{"))

    assert 'http_requests_total{handler="/",method="GET",status="200"} 3.0' in both
    assert 'http_requests_in_progress{handler="/"} 2.0' in both
    assert {"queue_depth 5.0", "model_degraded 1.0", "batch_size_count 2.0", "batch_size_sum 20.0"} <= set(both)
    assert versions(both) == ['1"} 1.0', '2"} 1.0']
    assert versions(worker.do(show.format(2))) == ['2"} 1.0']

    other.kill()
    one = worker.do()
    assert 'http_requests_total{handler="/",method="GET",status="200"} 3.0' in one
    assert 'http_requests_in_progress{handler="/"} 1.0' in one
    assert {"queue_depth 2.0", "model_degraded 0.0", "batch_size_count 2.0"} <= set(one)


def test_a_file_that_goes_while_it_is_looked_at_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(multiproc.VARIABLE, str(tmp_path))
    (tmp_path / "gauge_livesum_1.db").symlink_to("gone")

    assert Metrics().render()[0] == b""


def test_many_who_ask_at_once_share_a_rendering_that_began_after_they_asked():
    class Slow(Metrics):
        num_rendered = 0
        has_begun, gate = threading.Event(), threading.Event()

        def render(self):
            self.num_rendered += 1
            rendered = super().render()
            self.has_begun.set()
            assert self.gate.wait(10)
            return rendered

    metrics = Slow()

    async def scenario():
        scrapes = Scrapes(metrics)
        early = asyncio.create_task(scrapes.get())
        await asyncio.to_thread(metrics.has_begun.wait, 10)
        metrics.feedback.inc()
        gone, *late = [asyncio.create_task(scrapes.get()) for _ in range(50)]
        await asyncio.sleep(0)
        gone.cancel()
        metrics.gate.set()
        texts = [text for text, _ in await asyncio.gather(early, *late)]
        assert [b"feedback_total 1.0" in text for text in texts] == [False] + [True] * 49

    asyncio.run(asyncio.wait_for(scenario(), 10))
    assert metrics.num_rendered == 2


def alone(folder: Path, *, before: str = "", after: str = "", **variables: str) -> list[str]:
    script = ALONE.format(before=before, after=after)
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, env=os.environ | variables
    )
    assert not done.returncode, done.stderr
    return done.stdout.splitlines()


def test_a_new_server_removes_what_an_ended_one_left_and_nothing_of_a_living_one(tmp_path: Path, worker: Worker):
    worker.do("metrics.feedback.inc(5)")
    assert "feedback_total 3.0" in alone(tmp_path, after="metrics.feedback.inc(3)")
    assert "feedback_total 4.0" in alone(tmp_path, after="metrics.feedback.inc(4)")

    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2  # the living one's, and the last one's
    assert "feedback_total 5.0" in worker.do()


def test_a_worker_with_the_process_id_of_a_dead_one_inherits_no_gauge(tmp_path: Path):
    variables = {multiproc.VARIABLE: str(tmp_path / "run")}
    assert "queue_depth 9.0" in alone(tmp_path, after="metrics.queue_depth.set(9)", **variables)
    rename = (
        "(left,) = Path(sys.argv[1], 'run').glob('gauge_livesum_*.db');"
        "left.rename(left.with_name(f'gauge_livesum_{os.getpid()}.db'))"
    )
    assert "queue_depth 0.0" in alone(tmp_path, before=rename, **variables)


def test_preparing_too_late_is_refused_rather_than_counting_for_one_worker_only(tmp_path: Path):
    with pytest.raises(RuntimeError, match="imported already"):
        multiproc.prepare(tmp_path)
