"""The Lightning module: one step, and the metrics of an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from flatfix.data.datamodule import Batch, generator
from flatfix.errors import UserError
from flatfix.evaluation.metrics import METRICS
from flatfix.models.classifier import Classifier
from flatfix.training.accumulator import Accumulator
from flatfix.training.augment import Augment, Mixer, Mixing, Recurring
from flatfix.training.augment.base import to_device
from flatfix.training.losses import Loss, as_soft
from flatfix.training.speed import skip_idle_hooks


class TrainingModule(L.LightningModule):
    """Train a classifier.

    Args:
        classifier: what learns. Where its backbone is frozen, batches hold features in place of pictures.
        optimizer: makes an optimizer of parameter groups.
        scheduler: makes a schedule of an optimizer, `total_steps`, `steps_per_epoch` and `direction`.
        loss: says which targets it takes, and what training minimises.
        augment: varies the pictures of a training batch, or mixes them and with them their targets.
        positive: index of the positive class for two classes, else None.
        monitor: the validation metric that a schedule of progress follows.
        seed: with the step, and the batch's place in it, this determines what `augment` draws, so that a resumed run
            draws the same.
        decay_norms_and_biases: apply the optimizer's weight decay to one-dimensional parameters too.
        is_compiled: train what torch.compile makes of the classifier; it is evaluated and saved as it is.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler],
        loss: Loss,
        augment: Augment,
        positive: int | None,
        monitor: str,
        seed: int,
        decay_norms_and_biases: bool = False,
        is_compiled: bool = False,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.loss = loss
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self._augment = augment
        # Asked once: it takes 7 us a time on a quiet machine, 30 us on a busy one.
        self._mix = augment.mix if isinstance(augment, Mixer) else None
        self._vary = augment.vary if isinstance(augment, Recurring) else None
        self._monitor = monitor
        self._seed = seed
        self._decay_norms_and_biases = decay_norms_and_biases
        # A function, not a module: as one it would give every weight a second name.
        self._trained = torch.compile(classifier.forward, dynamic=False) if is_compiled else classifier.forward
        self.train_accumulator = Accumulator(positive)
        self.val_accumulator = Accumulator(positive)
        self.test_accumulator = Accumulator(positive)
        skip_idle_hooks(self)
        self._epoch_began = self._training_ended = self._learning_rate = 0.0

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute.

        Around every hook Lightning notes its name here, 46 times a step. By torch's way this takes 1.7 us each on a
        quiet machine and 4.7 us on a busy one, by ours 0.14 and 0.4 us.
        """
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch.

        The metrics of mixed pictures are those of the labels with the larger share.
        """
        labels = targets = batch.labels
        if self.loss.uses_soft_targets:
            assert batch.targets is not None  # loss_of has seen to it
            targets = batch.targets
        if self.classifier.is_frozen:
            logits = self.classifier.head(draw_views(batch.inputs, self._draws(batch_idx)))
        elif self._mix:
            mixing = self._mix(batch.inputs, self._draws(batch_idx))
            logits = self._trained(mixing.images).logits
            targets = mixed_targets(as_soft(targets, logits.shape[1]), mixing)
            labels = torch.where(mixing.shares < 0.5, labels[mixing.partners], labels)
        elif self._vary:
            pictures = self._vary(batch.inputs, self._draws(batch_idx), batch.indices, self.current_epoch)
            logits = self._trained(pictures).logits
        elif self._augment.changes_pictures:
            logits = self._trained(self._augment(batch.inputs, self._draws(batch_idx))).logits
        else:
            logits = self._trained(batch.inputs).logits
        self.train_accumulator.update(logits, labels, batch.indices)
        loss: Tensor = self.loss(logits, targets)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the predictions of one validation batch."""
        self.val_accumulator.update(self._logits(batch.inputs), batch.labels, batch.indices)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the predictions of one test batch, in the float32 in which the model will be served."""
        with torch.autocast(self.device.type, enabled=False):
            self.test_accumulator.update(self._logits(batch.inputs), batch.labels, batch.indices)

    def on_fit_start(self) -> None:
        """Have each rank draw its own dropout: Lightning gives all the same seed."""
        if self.global_rank:
            torch.manual_seed(generator(self._seed, self.global_rank).initial_seed())

    def on_train_epoch_start(self) -> None:
        """Start the clock."""
        self.train_accumulator.reset()
        self._epoch_began = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        """Log the metrics of the epoch, the learning rate and the speed.

        Raises:
            UserError: when the loss is no longer finite.
        """
        figures = self._log_metrics("train")
        seconds = self._training_ended - self._epoch_began
        num_images = sum(len(labels) for labels in self.train_accumulator.labels)
        self.log("images_per_second", num_images * self.trainer.world_size / seconds)
        self.log("learning_rate", self._learning_rate)
        if not math.isfinite(figures["loss"]):
            raise UserError(
                f"training diverged in epoch {self.current_epoch + 1}: the loss is {figures['loss']}. "
                "Lower optimizer.lr, lengthen scheduler.warmup_epochs, or set trainer.gradient_clip."
            )

    def on_validation_epoch_start(self) -> None:
        """Note the time, so that validation does not count as training, and forget the epoch before.

        The buffers of rank 0, which a checkpoint holds, are what all ranks judge.
        """
        self._training_ended = time.perf_counter()
        self.val_accumulator.reset()
        for buffer in self.buffers() if self.trainer.world_size > 1 else ():
            torch.distributed.broadcast(buffer, src=0)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics, and tell a schedule of progress.

        Lightning would tell it at the end of the epoch, after the checkpoint is written: a run that is resumed from
        there would not have heard of the epoch.
        """
        figures = self._log_metrics("val")
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(figures[self._monitor])

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Note the learning rate of the step that has ended, and move a schedule of the step."""
        self._learning_rate = scheduler.optimizer.param_groups[0]["lr"]
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()

    def on_test_epoch_start(self) -> None:
        """Forget the test before."""
        self.test_accumulator.reset()

    def configure_optimizers(self) -> Any:
        """Build the optimizer over parameter groups, and the schedule.

        Raises:
            UserError: when an epoch has fewer batches than are to make one step.
        """
        total_steps = int(self.trainer.estimated_stepping_batches)  # this counts the batches, too
        num_batches, accumulate = self.trainer.num_training_batches, self.trainer.accumulate_grad_batches
        if accumulate > num_batches:
            raise UserError(
                f"trainer.accumulate={accumulate}: an epoch has only {num_batches} batches, and a step does not reach "
                "beyond it. Lower it or dataset.batch_size."
            )
        groups = parameter_groups(self.classifier.named_parameters(), self._decay_norms_and_biases)
        optimizer = self._make_optimizer(groups)
        scheduler = self._make_scheduler(
            optimizer,
            total_steps=total_steps,
            steps_per_epoch=max(1, total_steps // (self.trainer.max_epochs or 1)),
            direction=METRICS[self._monitor],
        )
        schedule = {"scheduler": scheduler, "interval": "step", "reduce_on_plateau": False}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what rebuilds the classifier, as plain values."""
        checkpoint["hyper_parameters"] = self.classifier.spec.to_dict()

    def epoch_state(self) -> dict[str, Any]:
        """Return what the training of an epoch has come to so far, in plain values and tensors."""
        ended = self._training_ended if self.trainer.validating else time.perf_counter()
        return {
            "seen": self.train_accumulator.content(),
            "seconds": ended - self._epoch_began,
            "learning_rate": self._learning_rate,
        }

    def load_epoch_state(self, state: dict[str, Any]) -> None:
        """Go on in the middle of an epoch."""
        self.train_accumulator.reset()
        self.train_accumulator.update(**{name: part.to(self.device) for name, part in state["seen"].items()})
        self._training_ended = time.perf_counter()
        self._epoch_began = self._training_ended - state["seconds"]
        self._learning_rate = state["learning_rate"]

    def _logits(self, inputs: Tensor) -> Tensor:
        if self.classifier.is_frozen:
            logits: Tensor = self.classifier.head(inputs)
        else:
            logits = self.classifier(inputs).logits
        return logits

    def epoch_metrics(self, split: str) -> dict[str, float]:
        """Return the metrics of the epoch so far; torchmetrics computes them once."""
        accumulator = {"train": self.train_accumulator, "val": self.val_accumulator, "test": self.test_accumulator}[
            split
        ]
        figures: dict[str, float] = accumulator.compute()
        return figures

    def _draws(self, batch_idx: int) -> Generator:
        """Return what the augmentation of a batch draws from."""
        place = batch_idx % self.trainer.accumulate_grad_batches  # in the window whose gradients make one step
        return generator(self._seed, self.global_step, self.global_rank, place)

    def _log_metrics(self, split: str) -> dict[str, float]:
        figures = self.epoch_metrics(split)
        self.log_dict({f"{split}/{name}": value for name, value in figures.items()})
        return figures


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], decay_norms_and_biases: bool
) -> list[dict[str, Any]]:
    """Split trainable parameters into those that decay and the norms and biases, which do not.

    Norms and biases are the parameters of at most one dimension (arXiv 1812.01187, section 3.1).
    """
    trainable = [parameter for _, parameter in parameters if parameter.requires_grad]
    if decay_norms_and_biases:
        return [{"params": trainable}]
    matrices = [parameter for parameter in trainable if parameter.ndim > 1]
    others = [parameter for parameter in trainable if parameter.ndim <= 1]
    return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]


def mixed_targets(targets: Tensor, mixing: Mixing) -> Tensor:
    """Mix soft targets `[N, C]` as their pictures were mixed."""
    return torch.lerp(targets[mixing.partners], targets, mixing.shares[:, None])


def draw_views(features: Tensor, generator: Generator) -> Tensor:
    """Pick one of the cached views of each picture: `[N, V, D]` or `[N, D]` to `[N, D]`."""
    if features.ndim == 2:
        return features
    rows = torch.arange(len(features), device=features.device)
    return features[rows, to_device(torch.randint(features.shape[1], (len(features),), generator=generator), features)]
