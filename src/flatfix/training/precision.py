"""Choose the precision that the hardware is fast in."""

from __future__ import annotations

import torch


def choose(precision: str, accelerator: str) -> tuple[str, str]:
    """Return Lightning's name of the precision to train in, and why.

    `auto` takes bf16 autocast on a GPU that has bf16 and on a CPU that has AMX tiles, else fp32.
    """
    if precision != "auto":
        return {"32": "32-true"}.get(precision, precision), "as configured"
    if accelerator != "cpu" and torch.cuda.is_available():
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16-mixed", "this GPU has bf16") if has_bf16 else ("32-true", "this GPU has no bf16")
    if torch.cpu._is_amx_tile_supported():
        return "bf16-mixed", "this CPU has AMX"
    return "32-true", "no hardware bf16"
