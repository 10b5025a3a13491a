from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from flatfix.training import schedulers


def rates(
    schedule: Callable[..., torch.optim.lr_scheduler.LRScheduler], epochs: int = 4, **options: float
) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, total_steps=10 * epochs, steps_per_epoch=10, **options)
    seen = []
    for _ in range(10 * epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_constant_stays() -> None:
    assert rates(schedulers.constant) == [1.0] * 40


def test_warmup_rises_in_a_line_from_a_rate_that_already_moves() -> None:
    seen = rates(schedulers.constant, warmup_epochs=1.0)
    assert seen[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert seen[10:] == [1.0] * 30


def test_cosine_peaks_after_warmup_halves_midway_and_ends_at_its_ratio() -> None:
    seen = rates(schedulers.cosine, warmup_epochs=1.0, final_ratio=0.1)
    assert max(seen) == seen[10] == pytest.approx(1.0)
    assert seen[25] == pytest.approx(0.55)
    assert seen[39] == pytest.approx(0.1, abs=0.01)
    assert seen[10:] == sorted(seen[10:], reverse=True)


def test_step_multiplies_every_so_many_epochs() -> None:
    seen = rates(schedulers.step, every_epochs=2, gamma=0.5)
    assert seen == [1.0] * 20 + [0.5] * 20
