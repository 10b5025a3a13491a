from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flatfix.errors import UserError
from flatfix.inference.package import MODEL, DamagedPackageError, Package
from flatfix.registry.versions import Version
from flatfix.serving.source import Choice, RegistryUnreachableError, Source
from tests.helpers.server import free_ports
from tests.helpers.serving import NAME, Shelf, empty_shelf

Promoted = tuple[Shelf, list[Version]]


def source(shelf: Shelf, alias: str = "production", name: str | None = None) -> Source:
    return Source(shelf.uri, name, alias, shelf.folder / "cache")


def found(choice: Choice | None) -> tuple[int, str] | None:
    return choice and (choice.version.number, choice.found_by)


def test_the_version_that_the_alias_points_at_is_found_and_where_it_moves_to(two: Promoted) -> None:
    shelf, (first, second) = two
    asked = source(shelf)
    assert found(asked.find()) == found(asked.find_any()) == (first.number, "production")
    shelf.point("production", second)
    assert found(asked.find()) == (second.number, "production")
    shelf.clear("production")
    assert asked.find() is None


def test_without_the_alias_staging_is_taken_and_without_that_the_newest(two: Promoted) -> None:
    shelf, (first, second) = two
    shelf.clear("production")
    assert found(source(shelf).find_any()) == (second.number, "newest")
    shelf.point("staging", first)
    assert found(source(shelf).find_any()) == (first.number, "staging")
    assert found(source(shelf, alias="canary").find_any()) == (first.number, "staging")


def test_an_alias_of_what_flatfix_did_not_register_is_refused(two: Promoted) -> None:
    shelf, _ = two
    shelf.client.create_model_version(NAME, "file:///nowhere")
    shelf.point("production", 3)
    for ask in (source(shelf).find, source(shelf).find_any):
        with pytest.raises(UserError, match="alias=production: it points at version 3 of tires, which Flatfix did not"):
            ask()


def test_a_registered_model_that_was_found_is_followed_whatever_is_registered_later(two: Promoted) -> None:
    shelf, (first, _) = two
    asked = source(shelf)
    asked.find()
    shelf.client.create_registered_model("wheels", tags={"flatfix.journal": "0"})
    assert found(asked.find()) == (first.number, "production")
    with pytest.raises(UserError, match=r"registry\.name: there are several") as refused:
        source(shelf).find()
    assert not isinstance(refused.value, RegistryUnreachableError)


def test_a_registry_without_a_model_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is registered at this tracking.uri yet"):
        source(empty_shelf(tmp_path)).find_any()


def test_a_database_that_is_missing_is_refused_and_not_made(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    with pytest.raises(RegistryUnreachableError, match=r"mlflow\.db does not exist\. Train .* promote"):
        Source(f"sqlite:///{database}", None, "production", tmp_path).find_any()
    assert not list(tmp_path.iterdir())


def test_a_database_that_goes_and_comes_back_as_another_file_is_read_anew(two: Promoted) -> None:
    shelf, (first, second) = two
    asked = source(shelf)
    asked.find()
    database = Path(shelf.uri.removeprefix("sqlite:///"))
    shutil.copy(database, database.with_suffix(".backup"))
    database.unlink()
    with pytest.raises(RegistryUnreachableError, match="does not exist"):
        asked.find()
    database.with_suffix(".backup").rename(database)
    with sqlite3.connect(database) as restored:
        restored.execute("UPDATE registered_model_aliases SET version = ?", (second.number,))
    assert found(asked.find()) == (second.number, "production")


def test_a_server_that_is_down_is_told_at_once_and_found_again_by_its_address(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(RegistryUnreachableError, match=r"tracking\.uri=http://127\.0\.0\.1:.*refused"):
        Source(f"http://127.0.0.1:{free_ports(1)[0]}", None, "production", tmp_path).find()
    assert time.monotonic() - start < 5


def test_a_server_that_hangs_is_told_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        start = time.monotonic()
        with pytest.raises(RegistryUnreachableError, match="MLflow cannot be used there"):
            Source(f"http://127.0.0.1:{hanging.getsockname()[1]}", None, "production", tmp_path).find()
    assert time.monotonic() - start < 5


def test_a_server_that_is_no_mlflow_is_told(tmp_path: Path) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"registered_models": "nothing of the kind"}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(RegistryUnreachableError, match="what answers there is not MLflow"):
            Source(f"http://127.0.0.1:{other.server_port}", None, "production", tmp_path).find_any()
        other.shutdown()


def test_a_package_is_fetched_whole_or_refused(
    packages: tuple[Package, Package], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf = empty_shelf(tmp_path)
    version = shelf.add(packages[0], is_remote=True)
    asked = source(shelf)
    choice = asked.find_any()
    assert choice and choice.version == version
    fetched = asked.fetch(choice)
    assert fetched.digest == version.tags["package_digest"]
    fetched.path(MODEL).write_bytes(b"damaged here")
    assert asked.fetch(choice).digest == version.tags["package_digest"]
    assert "damaged, fetched again" in capsys.readouterr().out
    shutil.rmtree(fetched.folder)
    (shelf.artifacts(version) / MODEL).write_bytes(b"damaged there")
    with pytest.raises(DamagedPackageError, match="version 2 of tires: .*changed since the package was made"):
        asked.fetch(choice)
    shutil.rmtree(shelf.artifacts(version))
    shutil.rmtree(fetched.folder)
    with pytest.raises(UserError, match="version 2 of tires: .*Restore|version 2 of tires: .*Start or repair"):
        asked.fetch(choice)


def test_packages_that_nobody_used_lately_leave_the_cache_but_the_last_eight(tmp_path: Path) -> None:
    folders = [tmp_path / "packages" / f"tires-{number}-0" for number in range(12)]
    hour = 3600
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / MODEL).write_bytes(b"onnx")
        age = (13 - number) * hour if number != 1 else hour / 2
        os.utime(folder, (time.time() - age, time.time() - age))
    Source("http://registry", None, "production", tmp_path).forget_unused()
    assert [folder.exists() for folder in folders] == [number not in (0, 2, 3, 4) for number in range(12)]


def test_making_a_source_imports_no_mlflow() -> None:
    script = "from flatfix.serving import follower, last_good, live, source; import sys; print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
