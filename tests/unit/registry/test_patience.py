from __future__ import annotations

from collections.abc import Callable

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    INVALID_PARAMETER_VALUE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)

from flatfix.registry import patience
from flatfix.registry.patience import patiently


def failing(num_times: int, code: int) -> tuple[Callable[[], str], list[int]]:
    calls: list[int] = []

    def call() -> str:
        calls.append(code)
        if len(calls) <= num_times:
            raise MlflowException("no", code)
        return "done"

    return call, calls


@pytest.mark.parametrize("code", [TEMPORARILY_UNAVAILABLE, BAD_REQUEST])
def test_what_may_pass_is_tried_again(code: int) -> None:
    call, calls = failing(2, code)
    assert patiently(call) == "done"
    assert len(calls) == 3


@pytest.mark.parametrize("code", [INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST])
def test_an_answer_is_an_answer(code: int) -> None:
    call, calls = failing(1, code)
    with pytest.raises(MlflowException):
        patiently(call)
    assert len(calls) == 1


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.2)
    call, calls = failing(1000, TEMPORARILY_UNAVAILABLE)
    with pytest.raises(MlflowException):
        patiently(call)
    assert 2 <= len(calls) < 20
