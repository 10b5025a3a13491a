from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from flatfix.inference.package import Package
from flatfix.registry.packages import as_mlflow_model
from flatfix.tracking.connection import connect, preflight
from tests.helpers.mlflow_db import fresh_database
from tests.helpers.packages import make_package

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import importlib.util
import json
from pathlib import Path

import mlflow
import numpy as np

present = [name for name in ("flatfix", "torch", "openvino") if importlib.util.find_spec(name)]
model = mlflow.pyfunc.load_model("models:/tires@production")
folder = Path(mlflow.artifacts.download_artifacts("models:/tires@production"), "extra_files")
reference = np.load(folder / "reference.npz", allow_pickle=False)
found = model.predict(reference["images"])
difference = float(np.abs(found["logits"] - reference["logits"]).max())
tolerance = json.loads((folder / "card.json").read_text())["parity"]["tolerance"]
shapes = {name: list(values.shape) for name, values in found.items()}
print(json.dumps({"present": present, "difference": difference, "tolerance": tolerance, "shapes": shapes}))
"""


def promoted(folder: Path) -> tuple[Package, str]:
    """Put a package into production; return it and the address of MLflow."""
    package = as_mlflow_model(make_package(folder / "exported"), folder / "package")
    uri = fresh_database(folder / "mlflow")
    client = connect(uri)
    run = client.create_run(preflight(uri, "flatfix"))
    client.log_artifacts(run.info.run_id, str(package.folder), "package")
    client.create_registered_model("tires")
    version = client.create_model_version("tires", f"{run.info.artifact_uri}/package", run.info.run_id)
    client.set_registered_model_alias("tires", "production", version.version)
    return package, uri


@pytest.mark.service
def test_what_is_in_production_predicts_where_only_mlflow_onnx_and_onnxruntime_are_installed(tmp_path: Path) -> None:
    package, uri = promoted(tmp_path)
    requirements = package.folder / "requirements.txt"
    assert [line.partition("=")[0] for line in requirements.read_text().split()] == ["mlflow", "onnx", "onnxruntime"]
    venv.create(tmp_path / "venv")
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
    constraint = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*install, *constraint, "--requirement", str(requirements)], check=True, timeout=500)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLFLOW"))}
    answer = subprocess.run(
        [python, "-c", SCRIPT],
        cwd=tmp_path,
        env={**inherited, "MLFLOW_TRACKING_URI": uri},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = json.loads(answer.stdout.splitlines()[-1])
    assert found["present"] == []
    assert found["shapes"] == {"logits": [32, 2], "features": [32, package.card.num_features]}
    assert found["difference"] <= found["tolerance"]
    assert not [path for path in (tmp_path / "mlflow").rglob("*") if path.suffix in (".pkl", ".pickle")]
