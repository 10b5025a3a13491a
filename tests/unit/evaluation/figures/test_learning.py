from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from flatfix.evaluation.figures import learning_curves, save
from flatfix.evaluation.figures.learning import best_epoch

HISTORY = [
    {"epoch": 0, "train/loss": 0.9, "val/loss": 0.8, "train/accuracy": 0.5, "val/accuracy": 0.6, "learning_rate": 0.1},
    {"epoch": 1, "train/loss": 0.6, "val/loss": 0.5, "train/accuracy": 0.7, "val/accuracy": 0.7, "learning_rate": 0.05},
    {"epoch": 2, "train/loss": 0.4, "val/loss": 0.6, "train/accuracy": 0.9, "val/accuracy": 0.7, "learning_rate": 0.01},
]


def curves(figure: Figure, panel: int) -> dict[str, list[tuple[float, float]]]:
    return {
        str(line.get_label()): list(zip(line.get_xdata(), line.get_ydata(), strict=True))
        for line in figure.axes[panel].lines
    }


def test_each_panel_shows_every_epoch_counted_from_1() -> None:
    figure = learning_curves(HISTORY, "accuracy")
    assert curves(figure, 0)["train"] == [(1, 0.9), (2, 0.6), (3, 0.4)]
    assert curves(figure, 0)["validation"] == [(1, 0.8), (2, 0.5), (3, 0.6)]
    assert curves(figure, 1)["validation"] == [(1, 0.6), (2, 0.7), (3, 0.7)]
    assert curves(figure, 2)["learning rate"] == [(1, 0.1), (2, 0.05), (3, 0.01)]
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss (nats)", "accuracy", "learning\nrate"]


def test_the_first_of_equally_good_epochs_is_marked_in_every_panel() -> None:
    figure = learning_curves(HISTORY, "accuracy")
    assert best_epoch(HISTORY, "accuracy") == 1
    for panel in range(3):
        assert [x for x, _ in curves(figure, panel)["best epoch"]] == [2, 2]
    assert figure.get_suptitle() == "Best validation accuracy 0.7000 in epoch 2 of 3"


def test_the_best_loss_is_the_lowest() -> None:
    figure = learning_curves([*HISTORY, {"epoch": 3, "val/loss": 0.3}], "loss")
    assert figure.get_suptitle() == "Best validation loss 0.3000 in epoch 4 of 4"
    assert figure.axes[1].get_ylabel() == "accuracy"


def test_another_metric_that_chose_the_checkpoint_is_shown() -> None:
    figure = learning_curves([{"epoch": 0, "val/auroc": 0.8}, {"epoch": 1, "val/auroc": 0.9}], "auroc")
    assert figure.axes[1].get_ylabel() == "AUROC"
    assert curves(figure, 1)["validation"] == [(1, 0.8), (2, 0.9)]


def test_an_epoch_without_a_value_is_never_the_best() -> None:
    history = [{"epoch": 0, "val/accuracy": math.nan}, {"epoch": 1, "val/accuracy": 0.2}, {"epoch": 2}]
    assert best_epoch(history, "accuracy") == 1
    assert best_epoch(history[:1], "accuracy") is None
    assert best_epoch([], "accuracy") is None


@pytest.mark.parametrize(
    "history",
    [HISTORY[:1], HISTORY * 60, [{"epoch": 0}], [{"epoch": 0, "val/loss": math.nan, "val/accuracy": math.nan}]],
    ids=["one epoch", "many", "no values", "nan"],
)
def test_any_history_draws_without_a_warning(tmp_path: Path, history: list[dict[str, float]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(learning_curves(history, "accuracy"), tmp_path / "figure.png")
