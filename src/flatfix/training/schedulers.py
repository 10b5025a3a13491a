"""Learning-rate schedules: of the step, and one of the monitored metric.

Each is made of an optimizer and of what the run knows: `total_steps`, `steps_per_epoch`, and the `direction` in which
the monitored metric gets better.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

Direction = Literal["min", "max"]
MOMENTUM_DIP = 0.1  # from 0.95 to 0.85, as in arXiv 1803.09820


def constant(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    direction: Direction,
    warmup_epochs: float = 0.0,
) -> LambdaLR:
    """Keep the learning rate, after an optional linear warm-up."""
    return _schedule(optimizer, steps_per_epoch, warmup_epochs, lambda step: 1.0)


def cosine(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    direction: Direction,
    warmup_epochs: float = 1.0,
    final_ratio: float = 0.0,
) -> LambdaLR:
    """Warm up linearly, then follow half a cosine down to `final_ratio` of the peak (arXiv 1608.03983)."""
    warmup = round(warmup_epochs * steps_per_epoch)

    def factor(step: int) -> float:
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))

    return _schedule(optimizer, steps_per_epoch, warmup_epochs, factor)


def step(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    direction: Direction,
    warmup_epochs: float = 0.0,
    every_epochs: int = 10,
    gamma: float = 0.1,
) -> LambdaLR:
    """Multiply the learning rate by `gamma` every `every_epochs` epochs."""
    return _schedule(
        optimizer, steps_per_epoch, warmup_epochs, lambda step: gamma ** (step // (every_epochs * steps_per_epoch))
    )


def onecycle(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    direction: Direction,
    warmup_fraction: float = 0.3,
    initial_ratio: float = 0.04,
    final_ratio: float = 4e-6,
) -> OneCycleLR:
    """Go up and down once over the run, along half cosines, and with momentum the other way (arXiv 1708.07120).

    The learning rate goes from `initial_ratio` of its peak up to it within `warmup_fraction` of the steps, then down to
    `final_ratio` of it. Momentum (the first beta of Adam) starts and ends at the optimizer's own and is less by
    `MOMENTUM_DIP` at the peak; an optimizer without momentum stays without.
    """
    if warmup_fraction * total_steps == 1:  # OneCycleLR would divide by zero: step 0 is both the start and the peak
        warmup_fraction *= 0.999
    momenta = [
        group["betas"][0] if "betas" in group else group.get("momentum", 0.0) for group in optimizer.param_groups
    ]
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=total_steps,
        pct_start=warmup_fraction,
        div_factor=1 / initial_ratio,
        final_div_factor=initial_ratio / final_ratio if final_ratio else math.inf,
        cycle_momentum=any(momenta),
        max_momentum=momenta,
        base_momentum=[max(0.0, momentum - MOMENTUM_DIP) for momentum in momenta],
    )


def plateau(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    direction: Direction,
    patience: int = 3,
    gamma: float = 0.1,
) -> ReduceLROnPlateau:
    """Multiply the learning rate by `gamma` after `patience` epochs without progress of the monitored metric.

    Patience and progress are those of early stopping: any progress counts, and after the `patience`-th epoch without
    it the rate goes down, where torch alone would wait for one more.
    """
    return ReduceLROnPlateau(optimizer, mode=direction, factor=gamma, patience=patience - 1, threshold=0.0)


def _schedule(
    optimizer: Optimizer, steps_per_epoch: int, warmup_epochs: float, factor: Callable[[int], float]
) -> LambdaLR:
    """Warm up over the first steps, the first of which already moves, then apply `factor` of the step."""
    warmup = round(warmup_epochs * steps_per_epoch)
    return LambdaLR(optimizer, lambda step: (step + 1) / (warmup + 1) if step < warmup else factor(step))
