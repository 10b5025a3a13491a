from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from flatfix.data.unlabelled import find_pictures
from flatfix.errors import UserError
from flatfix.inference.decision import Decision
from flatfix.models.classifier import Classifier, ClassifierSpec
from flatfix.prediction.checkpoint import model_of
from flatfix.prediction.run import Outcome, predict, run
from tests.helpers.images import colours, encode
from tests.helpers.models import make_classifier, save_checkpoint

NUM_PICTURES = 23
CPU = torch.device("cpu")
Rows = list[tuple[str, str | None, float | None, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of different sizes and forms."""
    folder = tmp_path / "new"
    folder.mkdir()
    for number in range(NUM_PICTURES):
        picture = colours(40 + number, 60 - number, seed=number)
        (folder / f"{number:02d}.png").write_bytes(encode(picture))
    return folder


@pytest.fixture
def classifier() -> Classifier:
    """Two classes, and probabilities that differ from picture to picture."""
    torch.manual_seed(0)
    classifier = make_classifier(classes=("ok", "defective"), resize="pad")
    torch.nn.init.normal_(classifier.head.weight, std=3)
    return classifier


def decided(classifier: Classifier, decision: Decision) -> Classifier:
    classifier.spec = replace(classifier.spec, decision=decision)
    return classifier


def expected_probabilities(classifier: Classifier, folder: Path, temperature: float = 1.0) -> NDArray[np.float64]:
    """Compute with other means: Pillow straight from the file, one picture at a time, softmax in float64."""
    probabilities = []
    for path in sorted(folder.glob("*.png")):
        picture = Image.open(path).convert("RGB")
        scale = 32 / max(picture.size)
        width, height = (max(1, round(side * scale)) for side in picture.size)
        canvas = Image.new("RGB", (32, 32))
        inner = picture.resize((width, height), Image.Resampling.BILINEAR)
        canvas.paste(inner, ((32 - width) // 2, (32 - height) // 2))
        with torch.no_grad():
            logits = classifier.eval()(torch.from_numpy(np.array(canvas))[None]).logits
        probabilities.append((logits[0].double() / temperature).softmax(0).numpy())
    return np.array(probabilities)


def rows_of(
    classifier: Classifier, source: Path, batch_size: int = 8, device: torch.device = CPU
) -> tuple[Rows, Outcome]:
    output = source.parent / "out.parquet"
    model = model_of(classifier, device, "checkpoint=tiny.ckpt")
    outcome = predict(model, find_pictures(str(source)), output, batch_size=batch_size)
    return [tuple(row.values()) for row in pq.read_table(output).to_pylist()], outcome


def test_a_row_has_the_most_probable_class_and_its_probability_in_the_order_of_the_paths(
    classifier: Classifier, folder: Path
) -> None:
    rows, outcome = rows_of(classifier, folder)
    probabilities = expected_probabilities(classifier, folder)
    assert len({label for _, label, _, _ in rows}) == 2
    assert [path for path, _, _, _ in rows] == [f"{folder}/{number:02d}.png" for number in range(NUM_PICTURES)]
    assert [label for _, label, _, _ in rows] == [classifier.spec.classes[label] for label in probabilities.argmax(1)]
    np.testing.assert_allclose([row[2] for row in rows], probabilities.max(1), atol=1e-5)
    assert all(decision == label for _, label, _, decision in rows)
    assert outcome == Outcome(NUM_PICTURES, 0, [])


def test_temperature_threshold_and_review_band_are_applied(classifier: Classifier, folder: Path) -> None:
    calibrated = expected_probabilities(classifier, folder, temperature=2.5)
    ranked = np.sort(calibrated[:, 1])
    # Far from 0.5, and between two pictures, so that no rounding decides.
    threshold, low, high = (float(ranked[place : place + 2].mean()) for place in (3, 1, 6))
    assert abs(threshold - 0.5) > 0.05
    decision = Decision(temperature=2.5, positive=1, threshold=threshold, review=(low, high))
    rows, outcome = rows_of(decided(classifier, decision), folder)
    labels = np.where(calibrated[:, 1] >= threshold, 1, 0)
    needs_review = (calibrated[:, 1] >= low) & (calibrated[:, 1] <= high)
    assert (labels != calibrated.argmax(1)).any()
    assert [label for _, label, _, _ in rows] == [classifier.spec.classes[label] for label in labels]
    np.testing.assert_allclose([row[2] for row in rows], calibrated[range(NUM_PICTURES), labels], atol=1e-5)
    assert [decision for _, _, _, decision in rows] == [
        "review" if see else classifier.spec.classes[label] for label, see in zip(labels, needs_review, strict=True)
    ]
    assert outcome.num_review == 5 == needs_review.sum()


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_the_batch_size_changes_nothing(classifier: Classifier, folder: Path, batch_size: int) -> None:
    expected, _ = rows_of(classifier, folder)
    rows, _ = rows_of(classifier, folder, batch_size=batch_size)
    assert [(row[0], row[1], row[3]) for row in rows] == [(row[0], row[1], row[3]) for row in expected]
    np.testing.assert_allclose([row[2] for row in rows], [row[2] for row in expected], atol=1e-5)


def test_an_unreadable_picture_has_its_row_and_its_reason_and_the_others_theirs(
    classifier: Classifier, folder: Path
) -> None:
    expected, _ = rows_of(classifier, folder)
    (folder / "03.png").write_bytes(b"\x89PNG nothing")
    (folder / "04.png").write_bytes(b"")
    (folder / "05.png").unlink()
    (folder / "list.txt").write_text("\n".join(f"{number:02d}.png" for number in range(NUM_PICTURES)))
    rows, outcome = rows_of(classifier, folder / "list.txt", batch_size=3)
    for place in range(NUM_PICTURES):
        if place in (3, 4, 5):
            assert rows[place] == (f"{place:02d}.png", None, None, "unreadable")
        else:
            assert rows[place][1] == expected[place][1]
            assert rows[place][2] == pytest.approx(expected[place][2], abs=1e-5)
    assert outcome.num_pictures == NUM_PICTURES
    broken, empty, missing = outcome.unreadable
    assert broken.startswith("03.png: ") and empty == "04.png: the file is empty"
    assert missing == "05.png: No such file or directory"


def test_a_name_that_is_not_utf_8_is_written_out(classifier: Classifier, folder: Path) -> None:
    (folder / "00.png").rename(folder / "caf\udce9.png")
    rows, _ = rows_of(classifier, folder)
    assert rows[-1][0] == f"{folder}/caf\\udce9.png"


def test_where_nothing_can_be_read_the_output_of_before_stays(classifier: Classifier, folder: Path) -> None:
    _, outcome = rows_of(classifier, folder)
    before = (folder.parent / "out.parquet").read_bytes()
    for picture in folder.iterdir():
        picture.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"(?s)none of 23 pictures can be read:.*00\.png: .*and 3 more"):
        rows_of(classifier, folder)
    assert (folder.parent / "out.parquet").read_bytes() == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["new", "out.parquet"]


def test_a_model_that_diverged_is_refused(classifier: Classifier, folder: Path) -> None:
    torch.nn.init.constant_(classifier.head.bias, float("nan"))
    with pytest.raises(UserError, match=r"checkpoint=tiny\.ckpt: the model predicts nan"):
        rows_of(classifier, folder)


def test_no_more_than_a_few_batches_are_in_memory_at_a_time(tmp_path: Path) -> None:
    class Mean(torch.nn.Module):
        num_features = 3

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.mean(dim=(2, 3))

    spec = ClassifierSpec("mean", ("ok", "defective"), 256, "squash", (0.5,) * 3, (0.25,) * 3)
    picture_bytes, num_pictures = 256 * 256 * 3, 200
    (tmp_path / "one.png").write_bytes(encode(colours()))
    (tmp_path / "list.txt").write_text("one.png\n" * num_pictures, encoding="utf-8")
    tracemalloc.start()
    try:
        rows_of(Classifier(spec, Mean()), tmp_path / "list.txt", batch_size=4)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < num_pictures * picture_bytes / 4


def config(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "checkpoint": str(folder.parent / "tiny.ckpt"),
        "alias": None,
        "input": str(folder),
        "output": str(folder.parent / "out.csv"),
        "batch_size": 8,
        "accelerator": "cpu",
        "runtime": "auto",
        "precision": "auto",
        "registry": {"name": None},
        "tracking": {"uri": f"sqlite:///{folder.parent}/mlflow.db"},
        "paths": {"cache": str(folder.parent / "cache")},
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "out.json"}, r"output=out\.json: unknown ending '\.json'\. Valid: \.parquet, \.csv"),
        ({"output": "folder.csv"}, r"output=folder\.csv: is a folder"),
        ({"input": "list.csv", "output": "./list.csv"}, r"output=\./list\.csv: is the list of the pictures itself"),
        ({"checkpoint": "gone.ckpt"}, r"checkpoint=gone\.ckpt: no such file or folder"),
        ({"checkpoint": "folder.csv"}, r"checkpoint=folder\.csv: a folder without checkpoints/best\.ckpt"),
        ({"checkpoint": "list.csv"}, r"checkpoint=list\.csv: cannot be read as weights"),
        ({"checkpoint": "other.ckpt"}, r"checkpoint=other\.ckpt: not a checkpoint of Flatfix"),
        ({"input": "gone"}, "input=gone: no such file or folder"),
        ({"checkpoint": None}, r"checkpoint, alias: give one of them\. alias=production is the registered model"),
        ({"alias": "production"}, "checkpoint, alias: give one of them"),
        ({"runtime": "openvino"}, r"runtime=openvino: only alias reads it\. Leave it out"),
        ({"registry": {"name": "tires"}}, r"registry\.name=tires: only alias reads it"),
        ({"checkpoint": None, "alias": "production"}, "accelerator=cpu: only checkpoint reads it"),
    ],
)
def test_what_cannot_work_is_refused_and_writes_nothing(
    classifier: Classifier, folder: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(folder.parent)
    save_checkpoint(classifier, Path("tiny.ckpt"))
    torch.save({"weights": torch.zeros(3)}, "other.ckpt")
    Path("folder.csv").mkdir()
    Path("list.csv").write_text("path\nnew/00.png\n", encoding="utf-8")
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError, match=message):
        run(config(folder, **changes))
    assert sorted(Path().rglob("*")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="accelerator=gpu: torch sees no GPU here"):
        run(config(folder, accelerator="gpu"))


@pytest.mark.gpu
def test_a_gpu_predicts_what_a_cpu_predicts(classifier: Classifier, folder: Path) -> None:
    expected, _ = rows_of(classifier, folder)
    rows, _ = rows_of(classifier, folder, device=torch.device("cuda"))
    np.testing.assert_allclose([row[2] for row in rows], [row[2] for row in expected], atol=1e-2)


def test_a_model_is_described_with_its_decision(classifier: Classifier) -> None:
    assert model_of(classifier, CPU, "checkpoint=a").describe() == "checkpoint=a (cnn, 2 classes, 32 px)"
    decision = Decision(positive=1, threshold=0.30864, review=(0.2, 0.4))
    assert model_of(decided(classifier, decision), CPU, "checkpoint=a").describe() == (
        "checkpoint=a (cnn, 2 classes, 32 px, defective from probability 0.3086 on, review from 0.2 to 0.4)"
    )
