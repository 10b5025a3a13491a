from __future__ import annotations

import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from flatfix.evaluation.figures import (
    confusion_matrix,
    learning_curves,
    precision_recall,
    reliability,
    roc,
    save,
    score_histogram,
)
from flatfix.evaluation.figures.style import WIDTH, scale_counts, smallest_font_size, stacked
from tests.helpers.answers import HOSTILE_NAMES, answers

HISTORY = [{"epoch": epoch, "train/loss": 1.0, "val/loss": 1.1, "val/accuracy": 0.5} for epoch in range(3)]
DRAW: dict[str, Callable[..., Figure]] = {
    "confusion_matrix": lambda test: confusion_matrix(test.labels, test.predictions, test.classes),
    "score_histogram": score_histogram,
    "reliability": reliability,
    "roc": roc,
    "precision_recall": precision_recall,
}


@pytest.mark.parametrize("num_classes", [2, 3, 100])
@pytest.mark.parametrize("name", DRAW)
def test_every_figure_draws_without_a_warning(tmp_path: Path, name: str, num_classes: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = DRAW[name](answers(num_classes))
        save(figure, tmp_path / "figure.png")
    assert Image.open(tmp_path / "figure.png").width > 300
    assert figure.get_suptitle()


@pytest.mark.parametrize(("name", "num_classes"), [*((name, 4) for name in DRAW), ("score_histogram", 2)])
def test_hostile_names_are_drawn_as_they_are(tmp_path: Path, name: str, num_classes: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = DRAW[name](answers(num_classes, classes=HOSTILE_NAMES[:num_classes]))
        save(figure, tmp_path / "figure.png")
    assert not any(text.get_parse_math() for text in figure.findobj(Text))


@pytest.mark.parametrize("name", ["score_histogram", "reliability", "roc", "precision_recall", "learning_curves"])
def test_letters_can_be_read_on_a_telephone(name: str) -> None:
    figure = learning_curves(HISTORY, "accuracy") if name == "learning_curves" else DRAW[name](answers(10))
    assert figure.get_figwidth() == WIDTH
    assert smallest_font_size(figure) / 72 * (343 / WIDTH) >= 9


def test_a_long_title_is_wrapped_within_the_figure() -> None:
    figure, _ = stacked("The median confidence is far above what anybody would believe it to be " * 2, height=3)
    figure.canvas.draw()
    assert figure.get_suptitle().count("\n") >= 2
    assert figure.texts[0].get_window_extent().x1 < figure.bbox.x1


@pytest.mark.parametrize(
    ("tallest", "ticks"), [(0, [0, 1]), (3, [0, 1, 2]), (190, [0, 10, 50, 100]), (4500, [0, 200, 1000, 2000])]
)
def test_counts_have_few_round_ticks(tallest: int, ticks: list[int]) -> None:
    _, (axes,) = stacked("", height=3)
    axes.bar([0], [tallest])
    scale_counts(axes)
    assert axes.get_yticks().tolist() == ticks


def test_saving_leaves_one_png_and_nothing_else(tmp_path: Path) -> None:
    save(stacked("title", height=3)[0], tmp_path / "figure.png")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    assert Image.open(tmp_path / "figure.png").format == "PNG"


def test_failed_save_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(b"earlier")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))  # as if the disk were full
    try:
        with pytest.raises(OSError):
            save(stacked("title", height=3)[0], path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"earlier"


def test_pyplot_is_never_loaded() -> None:
    code = "import sys, flatfix.evaluation.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
