"""Whatever the OpenAPI document allows, and much that it does not, has an answer that it describes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flatfix.inference.package import Package
from flatfix.serving.keys import add
from tests.helpers.flatfix_server import FlatfixServer
from tests.helpers.serving import promoted, two_packages, wrong

pytestmark = pytest.mark.service

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
)
DELIBERATE = '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "3xx", "4xx", 503, 504]\n'
NUM_OPERATIONS = 9


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return two_packages(tmp_path_factory.mktemp("packages"))[0]


def schemathesis(server: FlatfixServer, folder: Path, *options: str) -> str:
    """Ask for whatever the server's document brings to mind; return the report, which finds no fault."""
    config = folder / "schemathesis.toml"
    config.write_text(DELIBERATE)
    program = [str(Path(sys.executable).with_name("st")), "--config-file", str(config), "run"]
    what = ["--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--max-examples", "20"]
    # Without a database each run sends the same: what is found once is found again.
    how = ["--seed", "1", "--generation-database", "none", "--no-color", "--request-timeout", "20"]
    report = subprocess.run(
        [*program, f"{server.url}/openapi.json", *what, *how, *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert report.returncode == 0, report.stdout[-6000:] + report.stderr[-2000:]
    assert f"Tested: {NUM_OPERATIONS}" in report.stdout
    match = re.search(r"(\d+) generated, \1 passed", report.stdout)
    assert match, report.stdout
    assert int(match[1]) > 100
    return report.stdout


def test_every_answer_is_one_that_the_document_describes(package: Package, tmp_path: Path) -> None:
    shelf, _ = promoted(tmp_path, [package])
    keys = tmp_path / "keys.json"
    admin = add(keys, "operator", ["admin", "predict"], None)
    with FlatfixServer(tmp_path / "server", shelf.uri, f"auth.keys={keys}") as server:
        assert "POST /admin/reload" in schemathesis(server, tmp_path)  # refused: there is no key
        assert "401" not in schemathesis(server, tmp_path, "-H", f"Authorization: Bearer {admin}")
        assert server.health()["status"] == "ok"
        assert "request_failed" not in server.log


def test_every_answer_that_needs_a_key_is_one_that_the_document_describes(package: Package, tmp_path: Path) -> None:
    shelf, _ = promoted(tmp_path, [package])
    keys = tmp_path / "keys.json"
    add(keys, "line-3", ["predict"], None)
    with FlatfixServer(tmp_path / "server", shelf.uri, f"auth.keys={keys}", "auth.predict=true") as server:
        assert "401" in schemathesis(server, tmp_path)
        assert "request_failed" not in server.log


def test_every_answer_without_a_model_is_one_that_the_document_describes(package: Package, tmp_path: Path) -> None:
    shelf, _ = promoted(tmp_path, [wrong(package, tmp_path / "wrong")])
    with FlatfixServer(tmp_path / "server", shelf.uri, waits_for_model=False) as server:
        schemathesis(server, tmp_path)
        assert server.health()["status"] == "starting"
        assert "request_failed" not in server.log
