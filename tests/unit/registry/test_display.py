from __future__ import annotations

import pytest

from flatfix.registry import display
from flatfix.registry.journal import GateResult


def test_what_gates_say_alike_at_length_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    damaged = "version 1 of treads: model.onnx: changed since the package was made. " + "Restore it. " * 5
    results = [
        GateResult("offline_evaluation", False, damaged),
        GateResult("not_worse", None, "no version is live yet"),
        GateResult("max_class_drop", None, "no version is live yet"),
        GateResult("self_test", False, damaged),
    ]
    display._gates(results)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(damaged)
    assert [line.count("no version is live yet") for line in lines[1:3]] == [1, 1]
    assert lines[3] == "  self_test           REFUSED  the same as offline_evaluation"
