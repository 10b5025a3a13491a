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
    assert listed.returncode == 1
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


def test_a_version_is_shown_verified_derived_compared_and_pulled(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pictures", num_pictures=60)
    name = "dataset.name=pets"
    assert publish(tmp_path, "dataset=folder", name, "dataset.version=v1", f"dataset.source.root={root}").stderr == ""
    shown = publish(tmp_path, "action=show", name, "dataset.version=v1")
    assert shown.returncode == 0
    assert "source.root" in shown.stdout
    assert "cat       36    9    15" in shown.stdout
    assert "finding: classes with fewer than 10 pictures in a split: 2 (cat in val (9), dog in val (9))" in shown.stdout

    (tmp_path / "fix.csv").write_text("id,label,change\ncat/000,dog,\ndog/001,,remove\n")
    derived = publish(tmp_path, "action=derive", name, "dataset.version=v2", "from=v1", "labels=fix.csv")
    assert (derived.returncode, derived.stderr) == (0, "")
    assert "published:" in derived.stdout
    manifest = tmp_path / "outputs/store/datasets/pets/v2/manifest.json"
    assert json.loads(manifest.read_bytes())["parent"] == "v1"

    compared = publish(tmp_path, "action=diff", name, "dataset.version=v2", "against=v1")
    assert compared.returncode == 0
    for part in ("added: 0", "removed: 1\n  dog/001", "relabelled: 1\n  cat/000: cat -> dog"):
        assert part in compared.stdout
    assert publish(tmp_path, "action=pull", name, "dataset.version=v2", "to=pulled").returncode == 0
    (relabelled,) = (tmp_path / "pulled").glob("*/dog/cat/000.png")
    assert relabelled.read_bytes() == (root / "cat/000.png").read_bytes()

    whole = publish(tmp_path, "action=verify", name, "dataset.version=v2")
    assert (whole.returncode, whole.stderr) == (0, "")
    shard = manifest.with_name("shard-00000.tar")
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    damaged = publish(tmp_path, "action=verify", name, "dataset.version=v2")
    assert damaged.returncode == 1
    assert "datasets/pets/v2/shard-00000.tar" in damaged.stderr
    assert publish(tmp_path, "action=verify", name, "dataset.version=v1").returncode == 0


def test_options_of_another_action_and_missing_ones_are_refused_with_2(tmp_path: Path) -> None:
    for words, message in (
        (["action=list", "to=pulled"], "to=pulled: only action=pull reads it."),
        (["action=publish", "against=v1"], "against=v1: only action=diff reads it."),
        (["action=derive", "from=v1"], "labels: action=derive needs a value."),
        (["action=show", "dataset.name=pets"], "dataset.name=pets dataset.version=v1: not in the store"),
    ):
        refused = publish(tmp_path, *words)
        assert refused.returncode == 2
        assert message in refused.stderr


def test_copies_across_splits_are_refused_with_2_unless_allowed(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pictures", num_pictures=12, splits=("train", "val", "test"))
    (root / "test/cat/copy.png").write_bytes((root / "train/cat/003.png").read_bytes())
    words = ["dataset=folder", "dataset.name=pets", f"dataset.source.root={root}"]
    refused = publish(tmp_path, *words)
    assert refused.returncode == 2
    assert "test/cat/copy (test) = train/cat/003 (train)" in refused.stderr
    assert not (tmp_path / "outputs" / "store").exists()
    allowed = publish(tmp_path, *words, "dataset.allow_duplicates=true")
    assert allowed.returncode == 0
    assert "finding: pictures in more than one split, byte for byte: 1 (test/cat/copy" in allowed.stdout
