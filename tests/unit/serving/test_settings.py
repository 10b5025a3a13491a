from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flatfix.config.options import SERVE
from flatfix.errors import UserError
from flatfix.serving import settings
from tests.helpers.compose import compose


def limited(**limits: float) -> dict[str, Any]:
    config = settings.read(None)
    return {**config, "limits": {**config["limits"], **limits}}


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"waiting_mb": 15}, r"limits\.waiting_mb=15: .*limits\.body_mb=16"),
        ({"body_s": 11}, r"limits\.body_s=11: .*limits\.deadline_s=10"),
        ({"deadline_s": 9.5}, r"limits\.body_s=10: .*limits\.deadline_s=9\.5"),
    ],
)
def test_limits_that_contradict_each_other_are_named(limits, said):
    with pytest.raises(UserError, match=said):
        settings.Settings.of(limited(**limits))


def test_limits_may_be_equal():
    assert settings.Settings.of(limited(waiting_mb=16, deadline_s=10)).limits.waiting_mb == 16


def test_the_defaults_in_the_wheel_are_those_of_serve_py(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(f"paths:\n  output: {tmp_path}\n")

    assert settings.Settings.of(settings.read(file)) == settings.Settings.of(compose("serve", SERVE, tmp_path))


def test_what_serve_py_writes_is_read_as_it_was_meant(tmp_path: Path) -> None:
    told = compose("serve", SERVE, tmp_path, "alias=staging", "limits.waiting=7", "hosts=[a.example,1]")
    settings.write(told, tmp_path / "serve.yaml")

    assert settings.Settings.of(settings.read(tmp_path / "serve.yaml")) == settings.Settings.of(told)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alais: production\n", "Did you mean 'alias'"),
        ("port: none of these\n", "port: "),
        ("- a list\n", "not a mapping"),
        ("a: [\n", "not a mapping"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_its_fault(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=f"FLATFIX_SERVE_CONFIG={file}.*{said}"):
        settings.read(file)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="FLATFIX_SERVE_CONFIG=/nowhere/serve.yaml: cannot be read"):
        settings.read(Path("/nowhere/serve.yaml"))
