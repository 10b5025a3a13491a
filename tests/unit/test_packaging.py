from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import flatfix

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(text) for text in [*PROJECT["dependencies"], *sum(EXTRAS.values(), [])]]
PINS = {
    name: Version(version)
    for name, version in re.findall(r"^([^#\s=]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}


@pytest.mark.parametrize("requirement", sorted(set(map(str, REQUIREMENTS))))
def test_the_pin_is_within_the_range(requirement):
    wanted = Requirement(requirement)
    pin = PINS[canonicalize_name(wanted.name)]
    assert wanted.specifier.contains(pin, prereleases=True)


def test_every_line_of_the_constraints_is_an_exact_pin():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == len(PINS) > 200


@pytest.mark.parametrize("release", ["2.6.2", "2.6.3"])
def test_the_malicious_releases_of_lightning_are_excluded_by_name(release):
    specifiers = [str(requirement.specifier) for requirement in REQUIREMENTS if requirement.name == "lightning"]
    assert specifiers
    assert all(f"!={release}" in specifier for specifier in specifiers)
    assert PINS["lightning"] != Version(release) != PINS["pytorch-lightning"]


def test_one_package_has_one_range_wherever_it_is_asked_for():
    ranges = {requirement.name: requirement.specifier for requirement in REQUIREMENTS}
    assert [str(requirement) for requirement in REQUIREMENTS if ranges[requirement.name] != requirement.specifier] == []


def test_core_depends_only_on_what_every_room_needs():
    names = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert names == {"hydra-core", "numpy", "omegaconf", "pillow", "pyarrow", "rich", "simplejpeg"}


def test_version_is_a_version():
    assert str(Version(flatfix.__version__)) == flatfix.__version__


@pytest.mark.service
def test_serving_installs_without_torch(tmp_path):
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", report]
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run(
        [*command, "--constraint", "constraints.txt", ".[serve]"], cwd=ROOT, env=environment, check=True, timeout=300
    )
    names = {canonicalize_name(item["metadata"]["name"]) for item in json.loads(report.read_text())["install"]}
    assert {"flatfix", "fastapi", "onnxruntime", "mlflow-skinny"} <= names
    heavy = re.compile(r"torch|lightning|timm|triton|nvidia|cuda")
    assert sorted(name for name in names if heavy.search(name)) == []
