"""What makes a step cheaper and leaves what it learns as it is: fused optimizers, a compiled model, fewer calls."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import PassThroughProfiler
from torch.optim import SGD, Adam, AdamW, Optimizer

from flatfix.errors import UserError

FUSED = (SGD, Adam, AdamW)
CHOSEN_BY_USER = frozenset({"fused", "foreach", "differentiable"})
HOOKS_OF_A_STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


def fused(make: Callable[..., Optimizer], *, clips: bool) -> Callable[..., Optimizer]:
    """Let an optimizer of torch move all weights in one kernel where it can; its steps differ by rounding alone.

    Args:
        make: makes the optimizer of parameter groups.
        clips: gradients are clipped, which Lightning refuses in mixed precision where the optimizer is a fused one.
    """
    if clips or not isinstance(make, partial) or make.func not in FUSED or CHOSEN_BY_USER & make.keywords.keys():
        return make
    return partial(make.func, *make.args, **make.keywords, fused=True)


def check_compiler(accelerator: str) -> None:
    """Compile something tiny: torch finds out only then what it lacks.

    Raises:
        UserError: when `trainer.compile` cannot work on this machine.
    """
    device = "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    try:
        torch.compile(torch.sin)(torch.ones(2, device=device))
    except Exception as error:  # of the compiler, of what calls it, of what it reads: each has a class of its own
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"trainer.compile=true: torch.compile does not work here ({reason}). It needs a C++ compiler, such as g++, "
            "and Python's headers; on a GPU also triton. Install them, or set trainer.compile=false."
        ) from error


class Unprofiled(PassThroughProfiler):
    """Measure nothing. Lightning's own that does so makes a context around each of 50 calls in a step."""

    _NOTHING = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """Return a context that does nothing."""
        return self._NOTHING


def skip_idle_hooks(hooked: Callback | L.LightningModule) -> None:
    """Make None of the hooks of a step that do nothing: Lightning passes over what cannot be called.

    For six callbacks and the module it calls 40 of them in every step, and names each call anew for a profile.
    """
    base = L.LightningModule if isinstance(hooked, L.LightningModule) else Callback
    for name in HOOKS_OF_A_STEP:
        if getattr(type(hooked), name) is getattr(base, name):
            setattr(hooked, name, None)
