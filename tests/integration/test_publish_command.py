from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers.compose import ROOT
from tests.helpers.images import class_folders


def publish(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "publish.py"), *words], cwd=folder, capture_output=True, text=True, timeout=120
    )


def test_publish_freezes_a_folder_once_and_list_shows_it(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pictures", num_pictures=12)
    words = ["dataset=folder", "dataset.name=pets", "dataset.version=split_1", f"dataset.source.root={root}"]
    assert "holds no version yet" in publish(tmp_path, "action=list").stdout
    first = publish(tmp_path, *words)
    assert (first.returncode, first.stderr) == (0, "")
    assert "published:" in first.stdout
    assert "pets/split_1" in first.stdout
    manifest = tmp_path / "outputs/store/datasets/pets/split_1/manifest.json"
    before = manifest.read_bytes()

    again = publish(tmp_path, *words)
    assert again.returncode == 0
    assert "already published, with the same content" in again.stdout
    assert manifest.read_bytes() == before
    assert "pets/split_1" in publish(tmp_path, "action=list").stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs", "pictures"]

    damaged = manifest.parent.with_name("damaged") / manifest.name
    damaged.parent.mkdir()
    damaged.write_bytes(before[:100])
    listed = publish(tmp_path, "action=list")
    assert listed.returncode == 0
    assert "pets/split_1" in listed.stdout
    assert "datasets/pets/damaged/manifest.json in file://" in listed.stderr


def test_a_broken_annotation_is_refused_with_2_and_names_the_row(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pictures", num_pictures=12)
    file = tmp_path / "labels.json"
    rows = [{"FilePath": f"{label}/000.png", "label_value": label} for label in ("cat", "dog")]
    file.write_text(json.dumps({"annotation": {"data": [*rows, {"FilePath": "cat/001.png", "label": "cat"}]}}))
    words = ["dataset=annotations", "dataset.name=pets", f"dataset.source.root={root}", f"dataset.source.file={file}"]
    refused = publish(tmp_path, *words)
    assert refused.returncode == 2
    assert f"dataset.source.file={file}: " in refused.stderr
    assert "annotation.data[2]: has no label_value. Did you mean 'label'?" in refused.stderr
    assert not (tmp_path / "outputs" / "store").exists()


def test_other_content_and_unreadable_files_are_refused_with_2(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pictures", num_pictures=12)
    words = ["dataset=folder", "dataset.name=pets", f"dataset.source.root={root}"]
    publish(tmp_path, *words)
    (root / "cat" / "broken one.png").write_bytes(b"\x89PNG nothing")
    refused = publish(tmp_path, *words, "dataset.version=v2")
    assert refused.returncode == 2
    assert "broken one.png" in refused.stderr
    assert "dataset.on_bad_image=skip" in refused.stderr
    assert "pets/v2" not in publish(tmp_path, "action=list").stdout
    skipped = publish(tmp_path, *words, "dataset.version=v2", "dataset.on_bad_image=skip")
    assert skipped.returncode == 0
    assert "finding: " in skipped.stdout
    (root / "cat" / "broken one.png").unlink()
    next((root / "dog").iterdir()).unlink()
    other = publish(tmp_path, *words)
    assert other.returncode == 2
    assert "Traceback" not in other.stderr
    assert (
        "nothing to publish from"
        in publish(tmp_path, "dataset=published", "dataset.name=a", "dataset.version=b").stderr
    )
