from __future__ import annotations

from typing import Any

import pytest

from flatfix.errors import UserError
from flatfix.serving import settings


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
