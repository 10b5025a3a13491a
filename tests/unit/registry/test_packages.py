from __future__ import annotations

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest
from mlflow import MlflowClient

from flatfix.errors import UserError
from flatfix.inference.package import CARD, CONFIG, MODEL, DamagedPackageError, Package, sha256_of
from flatfix.registry.packages import as_mlflow_model, fetch_package
from flatfix.registry.versions import Version
from flatfix.tracking.connection import connect, preflight
from tests.helpers.mlflow_db import fresh_database
from tests.helpers.packages import make_package, with_card


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder: Path = tmp_path_factory.mktemp("exported")
    return make_package(folder / "package")


@pytest.fixture(scope="module")
def package(exported: Package, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The package as MLflow keeps it."""
    folder: Path = tmp_path_factory.mktemp("kept")
    return as_mlflow_model(exported, folder / "package")


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    return connect(fresh_database(tmp_path / "mlflow"))


def version_of(source: str, **tags: str) -> Version:
    return Version("tires", 7, "5b0f", 0, tags, source)


def logged(client: MlflowClient, folder: Path) -> tuple[Version, Path]:
    """Log a package with a run, and return a version whose address is none of this machine, and where it lies."""
    run = client.create_run(preflight(client.tracking_uri, "flatfix"))
    client.log_artifacts(run.info.run_id, str(folder), "package")
    return version_of(f"runs:/{run.info.run_id}/package"), Path(
        run.info.artifact_uri.removeprefix("file://"), "package"
    )


def test_mlflow_loads_the_package_without_flatfix_and_gives_its_logits(package: Package) -> None:
    model = mlflow.pyfunc.load_model(str(package.folder))
    reference = package.reference()
    found = model.predict(reference.images)
    assert found["logits"].shape == reference.logits.shape
    assert np.abs(found["logits"] - reference.logits).max() <= package.card.parity.tolerance
    assert found["features"].shape == (32, package.card.num_features)
    example = model.input_example["images"]
    assert (example.dtype, example.shape) == (np.uint8, (1, 32, 32, 3))
    np.testing.assert_allclose(model.predict(model.input_example)["logits"], found["logits"][:1], atol=1e-4)


def test_what_mlflow_keeps_is_the_package_byte_by_byte(exported: Package, package: Package) -> None:
    assert package.digest == exported.digest
    for name in (CARD, *exported.card.files):
        assert sha256_of(package.path(name)) == sha256_of(exported.path(name))
    assert package.path(MODEL).parent == package.folder
    assert package.path(CARD).parent == package.folder / "extra_files"
    assert not [path for path in package.folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".data")]


def test_mlflow_is_told_what_goes_in_what_comes_out_and_what_it_takes(package: Package) -> None:
    model = mlflow.models.Model.load(str(package.folder))
    tensors = [*model.signature.inputs.inputs, *model.signature.outputs.inputs]
    assert [(each.name, str(each.type), each.shape) for each in tensors] == [
        ("images", "uint8", (-1, 32, 32, 3)),
        ("logits", "float32", (-1, 2)),
        ("features", "float32", (-1, package.card.num_features)),
    ]
    assert model.flavors["onnx"]["providers"] == ["CPUExecutionProvider"]
    assert {file["path"] for file in model.flavors["onnx"]["extra_files"]} == {
        f"extra_files/{name}" for name in (CARD, *package.card.files) if name != MODEL
    }
    assert model.metadata["package_digest"] == package.digest
    assert model.metadata["classes"] == ["ok", "defective"]
    assert (package.folder / "requirements.txt").read_text().splitlines() == [
        f"{name}=={metadata.version(name)}" for name in ("mlflow", "onnx", "onnxruntime")
    ]


def test_nothing_is_printed_and_nothing_overwritten(
    exported: Package, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    as_mlflow_model(exported, tmp_path / "package")
    assert capfd.readouterr() == ("", "")
    with pytest.raises(FileExistsError):
        as_mlflow_model(exported, tmp_path / "package")
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_a_package_on_this_machine_is_used_where_it_lies(
    package: Package, client: MlflowClient, tmp_path: Path
) -> None:
    folder = tmp_path / "100 % ours"
    shutil.copytree(package.folder, folder)
    for source in (folder.as_uri(), str(folder)):
        assert fetch_package(client, version_of(source), tmp_path / "cache").folder == folder
    assert not (tmp_path / "cache").exists()


def test_a_package_elsewhere_is_fetched_once(package: Package, client: MlflowClient, tmp_path: Path) -> None:
    version, source = logged(client, package.folder)
    first = fetch_package(client, version, tmp_path / "cache")
    assert first.digest == package.digest
    assert first.folder.is_relative_to(tmp_path / "cache")
    shutil.rmtree(source)
    assert fetch_package(client, version, tmp_path / "cache") == first


def test_many_who_fetch_at_once_share_one_download(package: Package, client: MlflowClient, tmp_path: Path) -> None:
    version, _ = logged(client, package.folder)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: fetch_package(client, version, tmp_path / "cache"), range(8)))
    assert {each.digest for each in found} == {package.digest}
    assert [path.name for path in (tmp_path / "cache" / "packages").glob("[!.]*")] == [found[0].folder.name]
    assert not [path for path in (tmp_path / "cache" / "packages").glob(".*") if path.is_dir()]


def test_versions_from_different_places_are_kept_apart(package: Package, client: MlflowClient, tmp_path: Path) -> None:
    found = [fetch_package(client, logged(client, package.folder)[0], tmp_path / "cache") for _ in range(2)]
    assert found[0].folder != found[1].folder


def test_a_copy_that_was_damaged_here_is_fetched_again(
    package: Package, client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version, _ = logged(client, package.folder)
    copy = fetch_package(client, version, tmp_path / "cache")
    copy.path(MODEL).write_bytes(b"other")
    os.unlink(copy.path(CONFIG))
    assert fetch_package(client, version, tmp_path / "cache").digest == package.digest
    assert "damaged, fetched again" in capsys.readouterr().out


@pytest.mark.parametrize("is_local", [True, False])
def test_a_package_that_mlflow_has_lost_a_part_of_is_refused_by_its_version(
    package: Package, client: MlflowClient, tmp_path: Path, is_local: bool
) -> None:
    version, source = logged(client, package.folder)
    if is_local:
        version = version_of(source.as_uri())
    (source / "extra_files" / CONFIG).unlink()
    message = r"version 7 of tires: .*no config\.yaml .*Restore the artifacts of run 5b0f, or use another version\."
    for _ in range(2):
        with pytest.raises(DamagedPackageError, match=message):
            fetch_package(client, version, tmp_path / "cache")


def test_a_package_that_is_not_there_is_refused_by_its_version(client: MlflowClient, tmp_path: Path) -> None:
    with pytest.raises(DamagedPackageError, match=r"version 7 of tires: .*gone: no card\.json"):
        fetch_package(client, version_of((tmp_path / "gone").as_uri()), tmp_path / "cache")
    with pytest.raises(
        UserError, match=r"^version 7 of tires: its package cannot be fetched from runs:/0123/package \("
    ):
        fetch_package(client, version_of("runs:/0123/package"), tmp_path / "cache")
    assert not list((tmp_path / "cache" / "packages").glob("[!.]*"))


def test_another_package_than_was_registered_is_refused(package: Package, client: MlflowClient, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"another").hexdigest()
    with pytest.raises(DamagedPackageError, match="holds another package than was registered"):
        fetch_package(client, version_of(package.folder.as_uri(), package_digest=digest), tmp_path / "cache")
    elsewhere, source = logged(client, with_card(package, tmp_path / "other", run_id="0123").folder)
    elsewhere = replace(elsewhere, tags={"package_digest": package.digest})
    with pytest.raises(DamagedPackageError, match="holds another package than was registered"):
        fetch_package(client, elsewhere, tmp_path / "cache")
    shutil.rmtree(source)
    shutil.copytree(package.folder, source)  # as the error advises
    assert fetch_package(client, elsewhere, tmp_path / "cache").digest == package.digest
    version = version_of(package.folder.as_uri(), package_digest=package.digest)
    assert fetch_package(client, version, tmp_path / "cache").digest == package.digest
