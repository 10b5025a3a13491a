from __future__ import annotations

import os
import signal
from functools import partial

import pytest

# Before torch is imported: a worker of pytest-xdist shares the cores with its siblings.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background jobs with Ctrl-C ignored; tests of Ctrl-C must not inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the page and the figures of evaluations: what takes longest, where the answers alone matter."""
    from flatfix.registry import evaluation

    monkeypatch.setattr(evaluation, "assess", partial(evaluation.assess, draw=False))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch  # no sooner: most tests do without

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")
