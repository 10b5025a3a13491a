"""What training minimises: a scalar of logits `[N, C]` and labels `[N]` or soft targets `[N, C]`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from flatfix.errors import UserError

ClassWeights = Literal["auto"] | Sequence[float] | None


class Loss(nn.Module):
    """Weigh the classes of a loss, which a subclass defines.

    A mean over weighted pictures divides by the sum of their weights, where the weight of a soft target is the mean
    of its classes' weights: one-hot targets give what their labels give. (`F.cross_entropy` does so for labels alone;
    for soft targets it divides by N.)

    Args:
        class_counts: pictures of each class in the training split, in class order.
        class_weights: weight of each class in order; `auto`, which makes all classes of a split weigh alike; or None.

    Raises:
        UserError: when there is not one positive weight a class.
    """

    uses_soft_targets: ClassVar[bool] = False
    """Whether the targets are those of the dataset in place of its labels."""

    class_weights: Tensor | None

    def __init__(self, class_counts: Sequence[int], class_weights: ClassWeights) -> None:
        super().__init__()
        # Not persistent: a checkpoint holds the classifier, which is the same under every loss.
        self.register_buffer("class_weights", _weights(class_counts, class_weights), persistent=False)


class CrossEntropy(Loss):
    """Cross-entropy; `label_smoothing` is the part of a target that is spread over all classes (arXiv 1512.00567)."""

    def __init__(
        self, class_counts: Sequence[int], *, label_smoothing: float = 0.0, class_weights: ClassWeights = None
    ) -> None:
        super().__init__(class_counts, class_weights)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of `[N, C]` logits at labels `[N]` or soft targets `[N, C]`."""
        if targets.ndim == 1 or self.class_weights is None:
            return F.cross_entropy(logits, targets, self.class_weights, label_smoothing=self.label_smoothing)
        total = F.cross_entropy(
            logits, targets, self.class_weights, reduction="sum", label_smoothing=self.label_smoothing
        )
        return total / (targets * self.class_weights).sum()


class SoftTargets(CrossEntropy):
    """Cross-entropy to the probabilities that the dataset gives."""

    uses_soft_targets = True

    def __init__(self, class_counts: Sequence[int], *, class_weights: ClassWeights = None) -> None:
        super().__init__(class_counts, class_weights=class_weights)


class Focal(Loss):
    """Cross-entropy in which the share p of a target counts `(1 - p)^gamma`: easy pictures matter less.

    Lin et al. 2017, arXiv 1708.02002, over a softmax and for soft targets t: `-sum_c t_c (1 - p_c)^gamma log p_c`,
    which is their loss where t is one class, and cross-entropy where gamma is 0.
    """

    def __init__(self, class_counts: Sequence[int], *, gamma: float = 2.0, class_weights: ClassWeights = None) -> None:
        super().__init__(class_counts, class_weights)
        self.gamma = gamma

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of `[N, C]` logits at labels `[N]` or soft targets `[N, C]`."""
        weights = as_soft(targets, logits.shape[1])
        if self.class_weights is not None:
            weights = weights * self.class_weights
        log_p = F.log_softmax(logits.float(), dim=1)
        # At p = 1 a power below 1 has no slope; the floor leaves none either, in place of nan.
        misses = (-log_p.expm1()).clamp_min(torch.finfo(torch.float32).tiny)
        return -(weights * misses**self.gamma * log_p).sum() / weights.sum()


def loss_of(
    make: Callable[..., Loss], labels: NDArray[np.int64], targets: NDArray[np.float32] | None, num_classes: int
) -> Loss:
    """Make the loss of a training split.

    Args:
        make: the loss that the config names; it lacks `class_counts`.
        labels: `[N]`.
        targets: `[N, C]` soft targets, or None where the split has none.
        num_classes: C; a split need not hold all classes.

    Raises:
        UserError: for weights that do not fit the classes, and for a loss of soft targets on a split without.
    """
    counts = np.bincount(labels, minlength=num_classes)
    loss = make(tuple(counts.tolist()))
    if loss.uses_soft_targets and targets is not None:
        return make(tuple(targets.sum(axis=0, dtype=np.float64).tolist()))  # a picture counts in part for each class
    if loss.uses_soft_targets:
        raise UserError(
            "loss=soft_targets: not every training picture of the dataset has a target. Publish a version with "
            "targets (dataset=csv reads them), or use loss=cross_entropy."
        )
    return loss


def as_soft(targets: Tensor, num_classes: int) -> Tensor:
    """Return soft targets `[N, C]` float32; labels `[N]` become one-hot."""
    return targets if targets.ndim == 2 else F.one_hot(targets, num_classes).float()


def _weights(class_counts: Sequence[int], class_weights: ClassWeights) -> Tensor | None:
    """Return the weight of each class `[C]`.

    `auto` is n / (C * n_c) (King and Zeng 2001, doi:10.1093/oxfordjournals.pan.a004868), so that the pictures of each
    class weigh n / C together; a class without pictures, which no label asks for, weighs 0.
    """
    if class_weights is None:
        return None
    num_classes = len(class_counts)
    if class_weights == "auto":
        total = sum(class_counts)
        return torch.tensor([total / (num_classes * count) if count else 0.0 for count in class_counts])
    if len(class_weights) != num_classes:
        raise UserError(
            f"loss.class_weights={class_weights}: {len(class_weights)} weights for {num_classes} classes. "
            "Give one number a class, in the order of the classes, or auto."
        )
    if not all(isinstance(weight, int | float) and 0 < weight < math.inf for weight in class_weights):
        raise UserError(f"loss.class_weights={class_weights}: each weight must be a number > 0.")
    return torch.tensor([float(weight) for weight in class_weights])
