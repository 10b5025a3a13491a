"""The server as its users start it: one process, several, uvicorn alone, and an environment with nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flatfix.inference.decode import load
from flatfix.inference.package import Package
from flatfix.inference.predictor import Predictor
from flatfix.serving.keys import add
from flatfix.serving.last_good import POINTER, LastGood
from tests.helpers.compose import ROOT
from tests.helpers.flatfix_server import FlatfixServer
from tests.helpers.images import colours, encode
from tests.helpers.server import wait_until
from tests.helpers.serving import Shelf, promoted, two_packages

pytestmark = pytest.mark.service
PICTURE = encode(colours(48, 64), "JPEG")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, Package]:
    return two_packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, packages: tuple[Package, Package]) -> Shelf:
    return promoted(tmp_path_factory.mktemp("shelf"), packages)[0]


def counted(server: FlatfixServer, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(server.get("/metrics")[1].decode())
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def test_answers_are_those_of_the_package_in_production(
    shelf: Shelf, packages: tuple[Package, Package], tmp_path: Path
) -> None:
    card = packages[0].card
    said = Predictor(packages[0], "onnxruntime", "fp32").predict(load(PICTURE, card.image_size, card.resize)[None])
    with FlatfixServer(tmp_path, shelf.uri) as server:
        answer = server.predict(PICTURE)
        assert answer["model_version"] == "1"
        (prediction,) = answer["predictions"]
        assert prediction["class"] == card.classes[said.labels[0]]
        expected = dict(zip(card.classes, said.probabilities[0], strict=True))
        assert prediction["probabilities"] == pytest.approx(expected, abs=2e-6)
        assert prediction["probability"] == prediction["probabilities"][prediction["class"]]
        told, _ = server.post(
            "/feedback", json.dumps({"request_id": answer["request_id"], "label": "ok"}).encode(), "application/json"
        )
        assert told == 202
        assert counted(server, "feedback_total") == 1
        card_shown = json.loads(server.get("/info")[1])
        assert card_shown["classes"] == list(card.classes)
        assert counted(server, "predicted_class_total", class_id=str(said.labels[0])) == 1
        server.stop()
    records = tmp_path / "serving"
    (line,) = next(records.glob("answers-*.jsonl")).read_text().splitlines()
    assert json.loads(line)["request_id"] == answer["request_id"]
    (line,) = next(records.glob("feedback-*.jsonl")).read_text().splitlines()
    assert json.loads(line)["label"] == "ok"


def test_sigterm_answers_what_is_in_flight_and_ends_with_0(shelf: Shelf, tmp_path: Path) -> None:
    # The batch that waits for a picture that is being decoded: a large one holds the server for a while.
    large = encode(colours(3000, 4000), "PNG")
    with FlatfixServer(tmp_path, shelf.uri, "limits.body_mb=64") as server:
        answers: list[int] = []
        client = threading.Thread(target=lambda: answers.append(server.post("/predict", large)[0]))
        client.start()
        wait_until(lambda: counted(server, "http_requests_in_progress", handler="/predict") == 1, 10, "a request")
        process = server._process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        client.join(20)
        assert answers == [200]
        assert process.wait(20) == 0


def test_workers_count_together_and_one_that_is_killed_is_replaced(shelf: Shelf, tmp_path: Path) -> None:
    with FlatfixServer(tmp_path, shelf.uri, "workers=2") as server:
        for _ in range(20):
            server.predict(PICTURE)
        assert counted(server, "predicted_class_total") == 20
        assert counted(server, "http_requests_total", handler="/predict", status="200") == 20
        wait_until(lambda: counted(server, "model_version_info") == 1, 30, "both workers have a model")
        (victim, *_) = children(server.pid)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: victim not in children(server.pid) and len(children(server.pid)) >= 2, 30, "a new worker")
        wait_until(lambda: server.get("/readyz")[0] == 200, 30, "an answer")
        assert counted(server, "predicted_class_total") == 20
        wait_until(lambda: server.log.count("Started server process") == 3, 30, "the new worker's handler of signals")
        server._end(signal.SIGINT)  # to all processes, as Ctrl-C does
        assert "Traceback" not in server.log


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[FlatfixServer]:
    """A server that has served before, whose registry takes requests and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as registry:
        uri = f"http://127.0.0.1:{registry.getsockname()[1]}"
        before = LastGood.of(tmp_path / "cache" / "serving", uri, None, "production")
        before.folder.mkdir(parents=True)
        facts = {"name": "tires", "version": 1, "run_id": "0", "digest": "0" * 64}
        (before.folder / POINTER).write_text(json.dumps(facts))
        options = (
            f"paths.cache={tmp_path / 'cache'}",
            "limits.deadline_s=2",
            "limits.body_s=2",
            f"auth.keys={tmp_path / 'keys.json'}",
        )
        yield Patient(tmp_path, uri, *options, waits_for_model=False)


class Patient(FlatfixServer):
    def _environment(self) -> dict[str, str]:
        return {"MLFLOW_HTTP_REQUEST_TIMEOUT": "300"}


def test_a_look_that_takes_too_long_is_told_and_keeps_no_server_from_ending(
    hanging: FlatfixServer, tmp_path: Path
) -> None:
    key = add(tmp_path / "keys.json", "operator", ["admin"], None)
    with hanging as server:
        status, answer = server.post("/admin/reload", b"", authorization=f"Bearer {key}")
        assert (status, answer["outcome"], answer["model_version"]) == (202, "under_way", None)
        process = server._process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_workers_end_soon_though_their_first_look_hangs(hanging: FlatfixServer, tmp_path: Path) -> None:
    add(tmp_path / "keys.json", "operator", ["admin"], None)
    hanging._options += ("workers=2",)
    hanging._is_ready = lambda: hanging.log.count("Started server process") == 2  # type: ignore[method-assign]
    with hanging as server:
        server._end(signal.SIGTERM)  # within 20 s


def children(pid: int) -> list[int]:
    """Return the workers of a server, oldest first."""
    found = []
    for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes():
            found.append(int(each))
    return found


def test_uvicorn_alone_reads_the_file_that_the_environment_names(shelf: Shelf, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(f"tracking:\n  uri: {shelf.uri}\npaths:\n  output: {tmp_path}\n")

    class Uvicorn(FlatfixServer):
        def _command(self) -> list[str]:
            app = ["flatfix.serving.app:create_app", "--factory", "--port", str(self.ports[0])]
            return [sys.executable, "-m", "uvicorn", *app]

        def _environment(self) -> dict[str, str]:
            return {"FLATFIX_SERVE_CONFIG": str(file)}

    with Uvicorn(tmp_path, shelf.uri) as server:
        assert server.health()["model_version"] == "1"
        assert server.predict(PICTURE)["model_version"] == "1"


def test_keys_are_asked_for_and_stay_out_of_the_log(shelf: Shelf, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    line, admin = add(keys, "line-3", ["predict"], None), add(keys, "operator", ["admin"], None)
    with FlatfixServer(tmp_path, shelf.uri, f"auth.keys={keys}", "auth.predict=true") as server:
        assert server.post("/predict", PICTURE)[0] == 401
        assert server.post("/predict", PICTURE, authorization=f"Bearer {line}")[0] == 200
        assert server.post("/admin/reload", b"", authorization=f"Bearer {line}")[0] == 403
        status, answer = server.post("/admin/reload", b"", authorization=f"Bearer {admin}")
        assert (status, answer["outcome"], answer["model_version"]) == (200, "unchanged", "1")
        server.stop()
    assert '"key": "line-3"' in server.log
    assert line not in server.log
    assert admin not in server.log


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("port=99999", "port: 99999 is out of range"),
        ("alais=production", "alais"),
        ("auth.predict=true", "auth.predict=true: no keys to ask for"),
        ("auth.keys=/nowhere/keys.json", "/nowhere/keys.json"),
        ("host=192.0.2.1", "host=192.0.2.1"),
        ("tracking.uri=sqlite:////nowhere/mlflow.db", "does not exist. Train a model"),
        ("registry.name=tyres", "Did you mean 'tires'?"),
        ("paths.output=/proc/nowhere", "paths.output=/proc/nowhere: cannot be written to"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(shelf: Shelf, tmp_path: Path, option: str, said: str) -> None:
    words = ["port=0"] if option.startswith("paths.output") else [f"paths.output={tmp_path}", "port=0"]
    words += [] if option.startswith("tracking.uri") else [f"tracking.uri={shelf.uri}"]
    done = subprocess.run(
        [sys.executable, "serve.py", *words, option], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr


def test_an_environment_with_flatfix_serve_alone_serves(shelf: Shelf, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment)
    python = str(environment / "bin" / "python")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
    subprocess.run([*install, "--constraint", "constraints.txt", ".[serve]"], cwd=ROOT, check=True, timeout=500)
    names = {path.name.split("-")[0].lower() for path in environment.glob("lib/python*/site-packages/*.dist-info")}
    assert {name for name in names if re.search("torch|lightning|timm|nvidia", name)} == set()
    num_bytes = sum(path.stat().st_size for path in environment.rglob("*") if path.is_file())
    print(f"an environment with flatfix[serve] alone: {num_bytes / 1e6:.0f} MB, {len(names)} packages")
    file = tmp_path / "serve.yaml"
    file.write_text(f"tracking:\n  uri: {shelf.uri}\npaths:\n  output: {tmp_path}\n")

    class Clean(FlatfixServer):
        def _command(self) -> list[str]:
            app = ["flatfix.serving.app:create_app", "--factory", "--port", str(self.ports[0])]
            return [str(environment / "bin" / "uvicorn"), *app]

        def _environment(self) -> dict[str, str]:
            return {"FLATFIX_SERVE_CONFIG": str(file), "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}

    with Clean(tmp_path / "run", shelf.uri) as server:
        assert server.predict(PICTURE)["model_version"] == "1"
        status, heat = server.post("/explain", PICTURE)
        assert status == 200
        assert len(heat["heat"]) == len(heat["heat"][0])
