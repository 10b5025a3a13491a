"""airbench94, network and recipe as in its checkout, on these pictures and on a CPU. Knows nothing of Flatfix.

    python -m benchmarks.peers.accuracy_airbench <checkout of cifar10-airbench> <folder> <epochs> [<width> ...]

The folder has `train/` and `val/` with class folders. The script asks for a GPU and for float16, in which few CPUs
multiply matrices: here the network stays in float32 and computes under autocast to bfloat16 where the CPU is fast in
that, as ours does. The widths are those of its three blocks; without them, its own.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

SCRIPT = Path("legacy") / "airbench94.py"


class Event:
    """Tell the time as an event of CUDA does."""

    def __init__(self, **_: Any) -> None:
        self.moment = 0.0

    def record(self) -> None:
        """Note the time."""
        self.moment = time.perf_counter()

    def elapsed_time(self, later: Event) -> float:
        """Return the milliseconds until `later`."""
        return 1000 * (later.moment - self.moment)


def store(root: Path, path: Path) -> None:
    """Write a split in the form in which the script keeps it."""
    classes = sorted(folder.name for folder in root.iterdir())
    files = [(file, label) for label, name in enumerate(classes) for file in sorted((root / name).iterdir())]
    order = np.random.default_rng(0).permutation(len(files))  # its first 5,000 pictures make its first layer
    pixels = np.stack([np.array(Image.open(files[number][0]).convert("RGB")) for number in order])
    labels = torch.tensor([files[number][1] for number in order])
    torch.save({"images": torch.from_numpy(pixels), "labels": labels, "classes": classes}, path)


def run_on_cpu() -> None:
    """Let what asks for a GPU and for float16 stay on the CPU in float32."""
    torch.cuda.Event = Event  # type: ignore[assignment,misc]
    torch.cuda.synchronize = lambda *_: None
    nn.Module.cuda = nn.Module.half = lambda self, *_: self  # type: ignore[method-assign]
    Tensor.half = Tensor.float  # type: ignore[method-assign]
    load = torch.load
    torch.load = lambda path, map_location: load(path, map_location="cpu")


def in_bfloat16(net: nn.Module) -> nn.Module:
    """Let a network compute in bfloat16, and answer in float32; what surrounds it stays as it is."""
    forward = net.forward

    def computed(inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(inputs).float()

    net.forward = computed
    return net


def imported(path: Path) -> Any:
    """Import a script by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Train once."""
    checkout, root, num_epochs = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), float(sys.argv[3])
    widths = dict(zip(("block1", "block2", "block3"), map(int, sys.argv[4:]), strict=False))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("cifar10").mkdir()
        store(root / "train", Path("cifar10/train.pt"))
        store(root / "val", Path("cifar10/test.pt"))
        print("prepared", flush=True)
        script = imported(checkout / SCRIPT)
        script.hyp["opt"]["train_epochs"] = num_epochs
        script.hyp["net"]["widths"].update(widths)
        run_on_cpu()
        make_net, evaluate = script.make_net, script.evaluate
        # After every epoch, too, by a picture and its mirror image.
        script.evaluate = lambda net, loader, tta_level: evaluate(net, loader, max(1, tta_level))
        if torch.cpu._is_amx_tile_supported():
            script.make_net = lambda: in_bfloat16(make_net())
        script.main(0)


if __name__ == "__main__":
    main()
