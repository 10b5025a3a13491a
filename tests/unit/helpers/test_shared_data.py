from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.shared_data import shared_pictures


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("false", pytest.skip.Exception)])
def test_missing_pictures_skip_a_test_and_fail_it_in_ci(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("FLATFIX_SHARED_DATA", str(tmp_path))
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match=r"needs .*cifar10\.tar\.xz"):
        shared_pictures("cifar10", tmp_path)
