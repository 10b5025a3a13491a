from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.optim import SGD, Adagrad, AdamW
from torch.optim.lr_scheduler import OneCycleLR

from flatfix.training import schedulers


def rates(
    schedule: Callable[..., torch.optim.lr_scheduler.LRScheduler], epochs: int = 4, **options: float
) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, total_steps=10 * epochs, steps_per_epoch=10, direction="max", **options)
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


def one_group() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(1))]


def cycle(optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    """Return learning rate and momentum of each step, flat."""
    seen = []
    for _ in range(steps):
        group = optimizer.param_groups[0]
        seen += [group["lr"], group["betas"][0] if "betas" in group else group.get("momentum", 0.0)]
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize(
    "make",
    [lambda: SGD(one_group(), lr=0.5, momentum=0.95), lambda: AdamW(one_group(), lr=0.5, betas=(0.95, 0.999))],
)
def test_onecycle_is_that_of_torch_with_the_momentum_of_the_optimizer(
    make: Callable[[], torch.optim.Optimizer],
) -> None:
    ours, theirs = make(), make()
    schedule = schedulers.onecycle(ours, total_steps=40, steps_per_epoch=10, direction="max")
    seen = cycle(ours, schedule, 40)
    assert seen == pytest.approx(cycle(theirs, OneCycleLR(theirs, max_lr=0.5, total_steps=40), 40))
    assert (seen[0], max(seen[::2]), seen[-2]) == pytest.approx((0.02, 0.5, 2e-6))
    assert (seen[1], min(seen[1::2]), seen[-1]) == pytest.approx((0.95, 0.85, 0.95))


def test_onecycle_goes_from_ratio_to_ratio_of_the_rate_of_each_group() -> None:
    optimizer = SGD([{"params": one_group(), "lr": 1.0}, {"params": one_group(), "lr": 0.1}], lr=9.0, momentum=0.9)
    schedule = schedulers.onecycle(
        optimizer,
        total_steps=20,
        steps_per_epoch=10,
        direction="max",
        warmup_fraction=0.5,
        initial_ratio=0.5,
        final_ratio=0.0,
    )
    rates = []
    for _ in range(20):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx([0.5, 0.05])
    assert rates[9] == pytest.approx([1.0, 0.1])
    assert rates[19] == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize("make", [lambda: SGD(one_group(), lr=1.0), lambda: Adagrad(one_group(), lr=1.0)])
def test_onecycle_gives_no_momentum_to_an_optimizer_without(make: Callable[[], torch.optim.Optimizer]) -> None:
    optimizer = make()
    schedule = schedulers.onecycle(optimizer, total_steps=10, steps_per_epoch=10, direction="max")
    assert set(cycle(optimizer, schedule, 10)[1::2]) == {0.0}


@pytest.mark.parametrize(("steps", "fraction"), [(1, 0.3), (2, 0.5), (4, 0.25), (10, 0.1), (100, 0.01), (3, 0.99)])
def test_onecycle_stands_the_shortest_of_runs_and_of_rises(steps: int, fraction: float) -> None:
    optimizer = SGD(one_group(), lr=1.0, momentum=0.9)
    schedule = schedulers.onecycle(
        optimizer, total_steps=steps, steps_per_epoch=1, direction="max", warmup_fraction=fraction
    )
    seen = cycle(optimizer, schedule, steps)[::2]
    assert all(0 < rate <= 1 for rate in seen)
    assert seen[-1] == pytest.approx(4e-6)


def plateau_rates(figures: list[float], direction: schedulers.Direction, patience: int) -> list[float]:
    """Return the learning rate after each epoch."""
    optimizer = SGD(one_group(), lr=1.0)
    schedule = schedulers.plateau(
        optimizer, total_steps=100, steps_per_epoch=10, direction=direction, patience=patience, gamma=0.5
    )
    seen = []
    for figure in figures:
        schedule.step(figure)
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


def test_plateau_steps_down_after_patience_epochs_without_progress() -> None:
    assert plateau_rates([0.7, 0.7, 0.6, 0.7, 0.7], "max", patience=2) == [1.0, 1.0, 0.5, 0.5, 0.25]
    assert plateau_rates([0.7, 0.7], "max", patience=1) == [1.0, 0.5]


def test_plateau_follows_the_direction_of_its_metric_and_takes_any_progress() -> None:
    falling = [1 - 1e-6 * epoch for epoch in range(5)]
    assert plateau_rates(falling, "min", patience=1) == [1.0] * 5
    assert plateau_rates(falling, "max", patience=1) == [1.0, 0.5, 0.25, 0.125, 0.0625]


def test_plateau_takes_nan_for_no_progress() -> None:
    assert plateau_rates([math.nan, 0.5, math.nan, 0.6], "max", patience=1) == [0.5, 0.5, 0.25, 0.25]
