"""Choose the precision that the hardware is fast in."""

from __future__ import annotations

import torch
from torch import nn

from flatfix.errors import UserError


def choose(precision: str, accelerator: str, network: nn.Module | None = None) -> tuple[str, str]:
    """Return Lightning's name of the precision to train in, and why.

    `auto` takes bf16 autocast on a GPU that has bf16 and on a CPU that has AMX tiles, else fp32. A CPU takes fp32 too
    where depthwise convolutions learn: torch 2.15 takes 1.9 times as long for a step of EfficientNet-Lite0 in bf16.

    Args:
        precision: the option `trainer.precision`.
        accelerator: the option `trainer.accelerator`.
        network: what is to be trained, once it is known.

    Raises:
        UserError: for what this machine does not have.
    """
    has_gpu = accelerator != "cpu" and torch.cuda.is_available()
    if accelerator == "gpu" and not has_gpu:
        raise UserError("trainer.accelerator=gpu: torch sees no GPU here. Use trainer.accelerator=auto or cpu.")
    if precision == "16-mixed" and not has_gpu:
        raise UserError("trainer.precision=16-mixed: needs a GPU. Use auto, bf16-mixed or 32.")
    if precision != "auto":
        return {"32": "32-true"}.get(precision, precision), "as configured"
    if has_gpu:
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16-mixed", "this GPU has bf16") if has_bf16 else ("32-true", "this GPU has no bf16")
    if torch.cpu._is_amx_tile_supported():
        if network and any(map(_learns_depthwise, network.modules())):
            return "32-true", "depthwise convolutions are slow in bf16 on a CPU"
        return "bf16-mixed", "this CPU has AMX"
    return "32-true", "no hardware bf16"


def _learns_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels and layer.weight.requires_grad


def half(precision: str) -> torch.dtype | None:
    """Return what autocast computes in where Lightning trains in `precision`, None where there is no autocast."""
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
