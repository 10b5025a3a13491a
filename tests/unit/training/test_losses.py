from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from flatfix.errors import UserError
from flatfix.training.losses import CrossEntropy, Focal, Loss, SoftTargets, loss_of

COUNTS = (5, 3, 2)
WEIGHTS = [0.5, 1.0, 4.0]
GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)


def a_batch(count: int = 10) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits [N, 3], labels [N] and soft targets [N, 3]."""
    draws = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, 3, generator=draws)
    return logits, torch.arange(count) % 3, torch.randn(count, 3, generator=draws).softmax(1)


def by_definition(
    logits: torch.Tensor, targets: torch.Tensor, weights: list[float] | None = None, gamma: float = 0.0
) -> float:
    """Return the weighted mean of -sum_c t_c (1 - p_c)^gamma log p_c in double precision."""
    scores = np.exp(logits.numpy().astype(np.float64))
    p = scores / scores.sum(1, keepdims=True)
    shares = targets.numpy().astype(np.float64) * np.array(weights or [1.0, 1.0, 1.0])
    return float(-(shares * (1 - p) ** gamma * np.log(p)).sum() / shares.sum())


def test_cross_entropy_without_options_is_that_of_torch_to_the_bit() -> None:
    logits, labels, targets = a_batch(1000)
    for each in (labels, targets):
        assert torch.equal(CrossEntropy(COUNTS)(logits, each), F.cross_entropy(logits, each))


def test_cross_entropy_weighs_and_smooths_labels_as_torch_does() -> None:
    logits, labels, _ = a_batch()
    loss = CrossEntropy(COUNTS, label_smoothing=0.1, class_weights=WEIGHTS)(logits, labels)
    assert torch.equal(loss, F.cross_entropy(logits, labels, torch.tensor(WEIGHTS), label_smoothing=0.1))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_one_hot_targets_cost_what_their_labels_cost(weights: list[float] | None, smoothing: float) -> None:
    logits, labels, _ = a_batch()
    hot = F.one_hot(labels, 3).float()
    for loss in (
        CrossEntropy(COUNTS, label_smoothing=smoothing, class_weights=weights),
        Focal(COUNTS, class_weights=weights),
    ):
        torch.testing.assert_close(loss(logits, hot), loss(logits, labels))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_soft_targets_cost_their_weighted_cross_entropy(weights: list[float] | None) -> None:
    logits, _, targets = a_batch()
    loss = SoftTargets(COUNTS, class_weights=weights)
    assert loss(logits, targets).item() == pytest.approx(by_definition(logits, targets, weights), rel=1e-6)
    assert (loss.uses_soft_targets, CrossEntropy.uses_soft_targets, Focal.uses_soft_targets) == (True, False, False)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_focal_follows_its_definition_for_labels_and_soft_targets(weights: list[float] | None, gamma: float) -> None:
    logits, labels, targets = a_batch()
    loss = Focal(COUNTS, gamma=gamma, class_weights=weights)
    for given, soft in ((labels, F.one_hot(labels, 3)), (targets, targets)):
        assert loss(logits, given).item() == pytest.approx(by_definition(logits, soft, weights, gamma), rel=1e-5)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_focal_of_two_classes_is_the_published_one_over_a_sigmoid(gamma: float) -> None:
    scores, labels = 4 * torch.randn(50, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 2
    logits = torch.stack([torch.zeros(50), scores], dim=1)
    expected = sigmoid_focal_loss(scores, labels.float(), alpha=-1, gamma=gamma, reduction="mean")
    torch.testing.assert_close(Focal((1, 1), gamma=gamma)(logits, labels), expected)


def test_focal_with_gamma_0_is_cross_entropy() -> None:
    logits, labels, targets = a_batch()
    for each in (labels, targets):
        focal, plain = Focal(COUNTS, gamma=0.0, class_weights=WEIGHTS), CrossEntropy(COUNTS, class_weights=WEIGHTS)
        torch.testing.assert_close(focal(logits, each), plain(logits, each))


@pytest.mark.parametrize("loss", [CrossEntropy(COUNTS), *(Focal(COUNTS, gamma=gamma) for gamma in GAMMAS)])
@pytest.mark.parametrize("is_soft", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_and_point_the_right_way_at_extreme_logits(
    loss: Loss, is_soft: bool, dtype: torch.dtype
) -> None:
    sizes = torch.tensor([0.0, 1.0, 20.0, 100.0, 1e4])
    right = torch.stack([sizes, torch.zeros(5), -sizes], dim=1)
    logits = torch.cat([right, -right]).to(dtype).requires_grad_()
    labels = torch.zeros(10, dtype=torch.int64)
    value = loss(logits, F.one_hot(labels, 3).float() if is_soft else labels)
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[:, 0] <= 0).all()
    assert gradient[-1, 0].item() == pytest.approx(-0.1, rel=0.01)  # sure and wrong: the slope of cross-entropy over N


def test_auto_weights_make_the_pictures_of_every_class_weigh_alike() -> None:
    weights = CrossEntropy((6, 3, 1), class_weights="auto").class_weights
    assert weights is not None
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert (weights * torch.tensor([6, 3, 1])).tolist() == pytest.approx([10 / 3] * 3)


def test_auto_weights_leave_out_a_class_without_pictures() -> None:
    loss = CrossEntropy((2, 0, 2), class_weights="auto")
    assert loss.class_weights is not None
    assert loss.class_weights.tolist() == pytest.approx([2 / 3, 0.0, 2 / 3])
    logits, labels, _ = a_batch(6)
    assert loss(logits, 2 * (labels % 2)).isfinite()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], r"loss\.class_weights=\[1\.0, 2\.0\]: 2 weights for 3 classes.*or auto"),
        ([1.0, 2.0, 0.0], r"loss\.class_weights=.*each weight must be a number > 0"),
        ([1.0, 2.0, float("inf")], r"loss\.class_weights=.*each weight must be a number > 0"),
        ([1.0, 2.0, "3"], r"loss\.class_weights=.*each weight must be a number > 0"),
    ],
)
@pytest.mark.parametrize("loss", [CrossEntropy, Focal, SoftTargets])
def test_weights_that_do_not_fit_the_classes_are_named(loss: Any, weights: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        loss(COUNTS, class_weights=weights)


def test_weights_follow_the_device_and_stay_out_of_checkpoints() -> None:
    loss = Focal(COUNTS, class_weights="auto").to("meta")
    assert loss.class_weights is not None and loss.class_weights.device.type == "meta"
    assert loss.state_dict() == {}


def test_a_loss_counts_the_pictures_of_a_split_that_lacks_a_class() -> None:
    loss = loss_of(lambda counts: CrossEntropy(counts, class_weights="auto"), np.array([0, 0, 1]), None, num_classes=3)
    assert loss.class_weights is not None
    assert loss.class_weights.tolist() == pytest.approx([0.5, 1.0, 0.0])


def test_soft_targets_are_refused_where_the_split_has_none() -> None:
    labels, targets = np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]], dtype=np.float32)
    assert loss_of(SoftTargets, labels, targets, num_classes=2).uses_soft_targets
    with pytest.raises(UserError, match=r"loss=soft_targets: .*target"):
        loss_of(SoftTargets, labels, None, num_classes=2)
    assert not loss_of(CrossEntropy, labels, targets, num_classes=2).uses_soft_targets


def test_auto_weights_of_soft_targets_count_the_targets_and_not_the_labels() -> None:
    targets = np.array([[0.6, 0.4]] * 95 + [[0.3, 0.7]] * 5, dtype=np.float32)
    loss = loss_of(partial(SoftTargets, class_weights="auto"), targets.argmax(axis=1), targets, 2)
    assert loss.class_weights is not None
    mass = loss.class_weights.numpy() * targets.sum(axis=0)
    assert mass[0] == pytest.approx(mass[1], rel=1e-4)
