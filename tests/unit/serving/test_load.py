from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flatfix.config.exit_codes import ExitCode
from flatfix.serving.load import FIGURE, SUMMARY, draw, main, pictures_in
from flatfix.serving.load_summary import predicted_classes
from tests.helpers.tiny_http import Request, answer, tiny_http

CLASSES = ("ok", "defective")
METRICS = """# HELP predicted_class_total Pictures by class.
# TYPE predicted_class_total counter
{lines}# TYPE predicted_class_created gauge
predicted_class_created{{class_id="0"}} 1.7e+09
# TYPE http_requests_total counter
http_requests_total{{method="POST",handler="/predict",status="200"}} 12.0
"""


class Model:
    """Answers the class that stands in a picture's bytes, counts it, and fails where they say so."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.sent: list[bytes] = []

    def __call__(self, request: Request) -> bytes | None:
        if request.target == "/metrics":
            lines = [f'predicted_class_total{{class_id="{key}"}} {value}.0\n' for key, value in self.counts.items()]
            return answer(METRICS.format(lines="".join(lines)).encode())
        (told,) = re.findall(rb"<(.*)>", request.body)
        self.sent.append(told)
        if told == b"overloaded":
            return answer({"type": "/problems/overloaded", "status": 503}, 503)
        if told == b"proxy":
            return answer(b"<h1>Bad Gateway</h1>", 502)
        if told == b"other":
            return answer({"result": 1})
        if told == b"close":
            return b""
        label = told.decode()
        self.counts[str(CLASSES.index(label))] += 1
        prediction = {
            "class": label,
            "decision": label,
            "probability": 0.9,
            "probabilities": dict.fromkeys(CLASSES, 0.5),
        }
        return answer({"request_id": "1", "model_version": "7", "predictions": [prediction]})


def lay_out(folder: Path, told: dict[str, str]) -> Path:
    for name, content in told.items():
        (path := folder / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<{content}>")
    return folder


def load(url: str, pictures: Path, outdir: Path, *more: str) -> tuple[ExitCode, dict[str, Any]]:
    arguments = ["--base-url", url, "--image-dir", str(pictures), "--outdir", str(outdir), *more]
    return main(arguments), json.loads((outdir / SUMMARY).read_text())


def test_the_summary_tells_what_became_of_the_requests(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    right = {f"day/ok/{number}.jpg": "ok" for number in range(4)}
    pictures = lay_out(
        tmp_path / "pictures", {**right, "day/defective/5.PNG": "defective", "day/ok/6.jpg": "defective"}
    )
    model = Model()
    model.counts["0"] = 10
    with tiny_http(model) as server:
        code, found = load(server.url, pictures, tmp_path / "out", "--requests", "12", "--concurrency", "3")
    assert code == ExitCode.DONE
    assert (found["requests"], found["concurrency"], found["pictures"], found["answered"]) == (12, 3, 6, 12)
    assert found["by_status"] == {"200": 12}
    assert found["by_class"] == {"defective": 4, "ok": 8}
    assert found["model_versions"] == {"7": 12}
    assert found["errors"] == {}
    assert found["predicted_class_total"]["change"] == {"0": 8, "1": 4}
    latency = found["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"] < 1000 * found["seconds"]
    assert found["answered_per_second"] == pytest.approx(12 / found["seconds"])
    shown = capfd.readouterr().out
    assert re.search(r"answered +12 of 12\n", shown)
    assert re.search(r"predicted_class_total, class_id 1 +\+4\n", shown)


def test_the_accuracy_counts_each_picture_of_a_class_once(tmp_path: Path) -> None:
    told = {f"ok/{number}.jpg": "ok" for number in range(49)} | {"ok/no.jpg": "defective", "unsorted/a.jpg": "ok"}
    with tiny_http(Model()) as server:
        _, found = load(server.url, lay_out(tmp_path / "pictures", told), tmp_path / "out", "--requests", "102")
    accuracy = found["accuracy"]
    assert (accuracy["pictures"], accuracy["right"], accuracy["accuracy"]) == (50, 49, 0.98)
    assert accuracy["interval"] == pytest.approx([0.8950, 0.9965], abs=1e-4)  # Wilson's, of 49 in 50
    assert accuracy["by_class"].keys() == {"ok"}


def test_without_folders_of_classes_there_is_no_accuracy(tmp_path: Path) -> None:
    with tiny_http(Model()) as server:
        _, found = load(server.url, lay_out(tmp_path / "in", {"a.jpg": "ok"}), tmp_path / "out", "--requests", "2")
    assert found["accuracy"] is None


def test_requests_that_failed_are_counted_by_reason_and_the_exit_code_says_so(tmp_path: Path) -> None:
    told = {f"ok/{content}.jpg": content for content in ("overloaded", "proxy", "other", "close", "ok")}
    with tiny_http(Model()) as server:
        code, found = load(server.url, lay_out(tmp_path / "in", told), tmp_path / "out", "--requests", "10")
    assert code == ExitCode.NO
    assert found["answered"] == 2
    assert found["errors"] == {"closed": 2, "http_502": 2, "not_a_prediction": 2, "overloaded": 2}
    assert found["by_status"] == {"200": 4, "502": 2, "503": 2, "none": 2}


def test_where_nothing_is_answered_there_is_a_summary_and_a_figure_still(tmp_path: Path) -> None:
    with tiny_http(Model()) as server:
        code, found = load(server.url, lay_out(tmp_path / "in", {"a.jpg": "proxy"}), tmp_path / "out")
    assert (code, found["latency_ms"], found["answered_per_second"]) == (ExitCode.NO, None, 0)
    assert (tmp_path / "out" / FIGURE).is_file()


def test_the_figure_is_a_picture_that_a_telephone_can_show(tmp_path: Path) -> None:
    with tiny_http(Model()) as server:
        load(server.url, lay_out(tmp_path / "in", {"a.jpg": "ok", "b.jpg": "close"}), tmp_path / "out")
    with Image.open(tmp_path / "out" / FIGURE) as figure:
        assert figure.width == 800


def test_the_same_seed_sends_the_same_pictures_and_another_seed_others(tmp_path: Path) -> None:
    told = {f"{number}.jpg": "ok" for number in range(20)}
    pictures = pictures_in(lay_out(tmp_path, told))
    first, again, other = (list(draw(pictures, 50, seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_no_picture_comes_again_before_all_others_have_come(tmp_path: Path) -> None:
    pictures = pictures_in(lay_out(tmp_path, {f"{number}.jpg": "ok" for number in range(20)}))
    counts = Counter(draw(pictures, 50, seed=3))
    assert len(counts) == 20
    assert set(counts.values()) == {2, 3}


def test_files_that_are_no_pictures_are_left_out(tmp_path: Path) -> None:
    names = ("b/c/2.JPEG", "a.png", "notes.txt", "b/Thumbs.db", ".hidden/3.jpg", "b/.4.jpg")
    lay_out(tmp_path, dict.fromkeys(names, "ok"))
    assert [str(path.relative_to(tmp_path)) for path in pictures_in(tmp_path)] == ["a.png", "b/c/2.JPEG"]


def test_the_key_is_sent_and_written_nowhere(tmp_path: Path) -> None:
    with tiny_http(Model()) as server:
        load(server.url, lay_out(tmp_path / "in", {"a.jpg": "ok"}), tmp_path / "out", "--key", "s3cret")
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer s3cret"}
    assert "s3cret" not in (tmp_path / "out" / SUMMARY).read_text()


def test_a_server_without_metrics_is_measured_all_the_same(tmp_path: Path) -> None:
    model = Model()
    with tiny_http(lambda asked: answer(b"", 404) if asked.target == "/metrics" else model(asked)) as server:
        code, found = load(server.url, lay_out(tmp_path / "in", {"a.jpg": "ok"}), tmp_path / "out", "--requests", "3")
    assert (code, found["answered"], found["predicted_class_total"]) == (ExitCode.DONE, 3, None)


def test_a_class_that_was_not_counted_before_grows_from_zero() -> None:
    assert predicted_classes(METRICS.format(lines='predicted_class_total{class_id="1"} 3.0\n')) == {"1": 3.0}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"--base-url": "http://127.0.0.1:1"}, "--base-url"),
        ({"--base-url": "localhost"}, "--base-url"),
        ({"--image-dir": "nowhere"}, "--image-dir"),
        ({"--requests": "0"}, "--requests"),
        ({"--timeout": "-1"}, "--timeout"),
    ],
)
def test_an_option_that_does_not_work_is_named(
    change: dict[str, str], named: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = str(lay_out(tmp_path / "in", {"a.jpg": "ok"}))
    given = {"--base-url": "http://127.0.0.1:1", "--image-dir": folder, "--outdir": str(tmp_path / "out"), **change}
    assert main([part for pair in given.items() for part in pair]) == ExitCode.USAGE
    assert named in capfd.readouterr().err
    assert not (tmp_path / "out" / SUMMARY).exists()


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_sent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").touch()
    folder = str(lay_out(tmp_path / "in", {"a.jpg": "ok"}))
    with tiny_http(Model()) as server:
        code = main(["--base-url", server.url, "--image-dir", folder, "--outdir", str(tmp_path / "out")])
    assert (code, server.requests) == (ExitCode.USAGE, [])
    assert "--outdir" in capfd.readouterr().err


def test_a_folder_without_pictures_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").touch()
    given = ("--base-url", "http://127.0.0.1:1", "--image-dir", str(tmp_path), "--outdir", str(tmp_path))
    assert main(given) == ExitCode.USAGE
    assert "no picture in it" in capfd.readouterr().err
