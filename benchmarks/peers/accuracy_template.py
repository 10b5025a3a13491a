"""What lightning-hydra-template's `train.py` is given: pictures as torchvision reads them, and a line an epoch.

python -m benchmarks.peers.accuracy_template <checkout of lightning-hydra-template> [word of its config ...]
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from torch.optim import SGD
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.peers.accuracy_network import MEAN, STD
from flatfix.training.schedulers import cosine


class Pictures(L.LightningDataModule):
    """Read one file a picture, as the template's own data module does."""

    def __init__(self, root: str, batch_size: int, num_workers: int) -> None:
        super().__init__()
        self.root, self.batch_size, self.num_workers = Path(root), batch_size, num_workers

    def train_dataloader(self) -> DataLoader:
        """Return shifted and mirrored pictures."""
        varied = [transforms.RandomCrop(32, padding=2), transforms.RandomHorizontalFlip()]
        return self._loader("train", varied, is_training=True)

    def val_dataloader(self) -> DataLoader:
        """Return the pictures that tell the accuracy."""
        return self._loader("val", [], is_training=False)

    def _loader(self, split: str, varied: list[object], *, is_training: bool) -> DataLoader:
        steps = transforms.Compose([*varied, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        return DataLoader(
            ImageFolder(str(self.root / split), steps),
            batch_size=self.batch_size,
            shuffle=is_training,
            drop_last=is_training,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


class Later:
    """Call a function with options that were given before.

    Hydra 1.4 makes of any `functools.partial` what cannot be pickled, which Lightning drops from the `hparams` in which
    the template keeps it.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self.function, self.options = function, options

    def __call__(self, **more: Any) -> Any:
        """Call it."""
        return self.function(**self.options, **more)


def optimizer(**options: Any) -> Later:
    """Return what makes the optimizer of parameters."""
    return Later(SGD, options)


def scheduler(**options: Any) -> Later:
    """Return what makes the schedule of an optimizer."""
    return Later(cosine, options)


class Line(L.Callback):
    """Print the accuracy of every epoch."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print it; the sanity check before training does not count."""
        if not trainer.sanity_checking:
            print(f"accuracy {trainer.callback_metrics['val/acc']:.4f}", flush=True)


def main() -> None:
    """Run the script of the checkout."""
    checkout, *words = sys.argv[1:]
    sys.argv = [str(Path(checkout) / "src" / "train.py"), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
