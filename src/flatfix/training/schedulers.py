"""Learning-rate schedules, stepped once a training step."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def constant(optimizer: Optimizer, *, total_steps: int, steps_per_epoch: int, warmup_epochs: float = 0.0) -> LambdaLR:
    """Keep the learning rate, after an optional linear warm-up."""
    return _schedule(optimizer, steps_per_epoch, warmup_epochs, lambda step: 1.0)


def cosine(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
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
    warmup_epochs: float = 0.0,
    every_epochs: int = 10,
    gamma: float = 0.1,
) -> LambdaLR:
    """Multiply the learning rate by `gamma` every `every_epochs` epochs."""
    return _schedule(
        optimizer, steps_per_epoch, warmup_epochs, lambda step: gamma ** (step // (every_epochs * steps_per_epoch))
    )


def _schedule(
    optimizer: Optimizer, steps_per_epoch: int, warmup_epochs: float, factor: Callable[[int], float]
) -> LambdaLR:
    """Warm up over the first steps, the first of which already moves, then apply `factor` of the step."""
    warmup = round(warmup_epochs * steps_per_epoch)
    return LambdaLR(optimizer, lambda step: (step + 1) / (warmup + 1) if step < warmup else factor(step))
