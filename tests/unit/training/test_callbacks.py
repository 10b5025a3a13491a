from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from flatfix.training.callbacks import BestEpoch, EarlyStopping, Pruning
from flatfix.training.module import draw_views, parameter_groups
from tests.helpers.fit import fit
from tests.helpers.models import make_module


def epochs_until_stop(figures: list[tuple[float, float]], patience: int, delta: float = 0.0) -> int | None:
    """Feed (loss, accuracy) of each epoch; return the epoch, counted from 1, at which training stops."""
    callback, trainer = EarlyStopping(patience, delta), SimpleNamespace(should_stop=False)
    module = make_module()
    for epoch, (loss, accuracy) in enumerate(figures, start=1):
        module.epoch_metrics = lambda split, at=(loss, accuracy): dict(zip(("loss", "accuracy"), at, strict=True))  # type: ignore[method-assign,misc]
        callback.on_validation_end(trainer, module)  # type: ignore[arg-type]
        if trainer.should_stop:
            return epoch
    return None


def test_training_stops_after_patience_epochs_without_progress() -> None:
    assert epochs_until_stop([(1.0, 0.5), (1.0, 0.5), (1.0, 0.5)], patience=2) == 3


def test_either_a_lower_loss_or_a_higher_accuracy_is_progress() -> None:
    assert epochs_until_stop([(1.0, 0.5), (0.9, 0.5), (0.8, 0.5), (0.7, 0.5)], patience=1) is None
    assert epochs_until_stop([(1.0, 0.5), (1.1, 0.6), (1.2, 0.7), (1.3, 0.8)], patience=1) is None
    assert epochs_until_stop([(1.0, 0.5), (1.1, 0.4)], patience=1) == 2


def test_progress_smaller_than_delta_does_not_count() -> None:
    assert epochs_until_stop([(1.0, 0.5), (0.99, 0.505), (0.98, 0.51)], patience=2, delta=0.05) == 3
    assert epochs_until_stop([(1.0, 0.5), (0.99, 0.505), (0.90, 0.51)], patience=2, delta=0.05) is None


def test_small_steps_in_one_direction_add_up_to_progress() -> None:
    assert epochs_until_stop([(1 - 0.04 * epoch, 0.5) for epoch in range(10)], patience=3, delta=0.05) is None


def test_the_metrics_that_count_are_those_of_the_epoch_that_the_checkpoint_chose() -> None:
    checkpoint = SimpleNamespace(best_model_score=None)
    best = BestEpoch(checkpoint, (), stop_when_qualified=False)  # type: ignore[arg-type]
    module = make_module()
    for epoch, (score, chosen) in enumerate([(0.5, 0.5), (0.9, 0.9), (0.7, 0.9)]):
        checkpoint.best_model_score = torch.tensor(chosen)
        module.epoch_metrics = lambda split, at=score: {"accuracy": at}  # type: ignore[method-assign,misc]
        best.on_train_epoch_end(SimpleNamespace(current_epoch=epoch), module)  # type: ignore[arg-type]
    assert best.epoch == 1
    assert best.metrics == {"accuracy": pytest.approx(0.9)}


def test_training_stops_when_told_that_it_is_pruned_and_every_epoch_was_reported() -> None:
    seen: list[tuple[int, float]] = []

    def report(epochs: int, value: float) -> bool:
        seen.append((epochs, value))
        return epochs == 2

    pruning = Pruning(report, "accuracy")
    trainer = fit(make_module(), pruning, max_epochs=5)
    assert pruning.is_pruned
    assert trainer.current_epoch == 2
    assert [epochs for epochs, _ in seen] == [1, 2]
    assert seen[-1][1] == float(trainer.callback_metrics["val/accuracy"]), "not what is logged"


def test_early_stopping_goes_on_from_its_state() -> None:
    first, second = EarlyStopping(3, 0.0), EarlyStopping(3, 0.0)
    first.best_loss, first.best_accuracy, first.num_idle_epochs = 0.3, 0.9, 2
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()


def test_norms_and_biases_do_not_decay_unless_asked() -> None:
    module = make_module()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decaying, spared = parameter_groups(module.named_parameters(), decay_norms_and_biases=False)
    assert "weight_decay" not in decaying
    assert spared["weight_decay"] == 0.0
    assert {names[id(each)].rpartition(".")[2] for each in decaying["params"]} == {"weight"}
    assert all(each.ndim == 1 for each in spared["params"])
    assert len(decaying["params"]) + len(spared["params"]) == len(names)
    (together,) = parameter_groups(module.named_parameters(), decay_norms_and_biases=True)
    assert len(together["params"]) == len(names)


def test_views_are_drawn_for_each_picture_of_its_own() -> None:
    features = torch.arange(4.0).view(1, 4, 1).expand(1000, 4, 3)
    drawn = draw_views(features, torch.Generator().manual_seed(0))
    assert drawn.shape == (1000, 3)
    counts = torch.bincount(drawn[:, 0].long(), minlength=4)
    assert counts.min() > 200
    assert torch.equal(drawn, draw_views(features, torch.Generator().manual_seed(0)))
    assert torch.equal(draw_views(features[:, 0], torch.Generator()), features[:, 0])
