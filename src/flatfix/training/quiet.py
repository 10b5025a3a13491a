"""Keep lines that nobody can act on off the screen."""

from __future__ import annotations

import logging
import warnings

import torch


def quieten() -> None:
    """Silence what the libraries of training say of themselves, for the rest of the process."""
    for name in ("lightning.pytorch", "lightning.fabric", "matplotlib", "botocore", "onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.* is deprecated",  # Lightning 2.6 on torch 2.15
        "The number of training batches",  # it is about per-step logging, and nothing is logged per step
        "Found .* in eval mode",  # a frozen backbone is meant to be
        "It is recommended to use .*sync_dist=True",  # what is logged is of all ranks already
        "Be aware that when using `ckpt_path`",  # of a trial that goes on by itself, without its sweep
        "Checkpoint directory .* exists and is not empty",  # of a run that goes on
        "The dirpath has changed from",  # of a run that begins with the state of another, and has no best epoch yet
    ):
        warnings.filterwarnings("ignore", message=message)
    torch.set_float32_matmul_precision("high")
