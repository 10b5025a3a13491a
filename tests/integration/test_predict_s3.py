from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from flatfix.data import s3
from flatfix.data.unlabelled import find_pictures
from flatfix.errors import UserError
from flatfix.prediction.checkpoint import model_of
from flatfix.prediction.model import Model
from flatfix.prediction.run import predict
from tests.helpers.compose import ROOT
from tests.helpers.images import class_folders, colours, encode
from tests.helpers.models import make_classifier, save_checkpoint
from tests.helpers.s3_server import S3Server

pytestmark = pytest.mark.service
PICTURE = encode(colours())


def tiny() -> Model:
    return model_of(make_classifier(), torch.device("cpu"), "checkpoint=tiny.ckpt")


def predict_all(source: str, output: Path) -> list[dict[str, object]]:
    torch.manual_seed(0)
    predict(tiny(), find_pictures(source), output, batch_size=8)
    rows: list[dict[str, object]] = pq.read_table(output).to_pylist()
    return rows


def test_a_prefix_is_predicted_as_the_same_pictures_in_a_folder_are(s3_server: S3Server, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "new", num_pictures=20)
    for path in folder.rglob("*.png"):
        s3_server.put(f"same/{path.relative_to(folder).as_posix()}", path.read_bytes())
    local = predict_all(str(folder), tmp_path / "local.parquet")
    remote = predict_all("s3://pictures/same", tmp_path / "remote.parquet")
    assert [str(row["path"]).removeprefix(str(folder)) for row in local] == [
        str(row["path"]).removeprefix("s3://pictures/same") for row in remote
    ]
    assert [list(row.values())[1:] for row in local] == [list(row.values())[1:] for row in remote]
    assert len(remote) == 40


def test_a_prefix_holds_what_lies_below_its_slash_and_is_a_visible_picture(s3_server: S3Server) -> None:
    for key in ("line1/b.png", "line1/a b/ü+%20?#.JPG", "line1/.hidden.png", "line1/.git/x.png", "line1/notes.txt"):
        s3_server.put(key, key.encode())
    s3_server.put("line10/c.png", b"of another line")
    expected = ["s3://pictures/line1/a b/ü+%20?#.JPG", "s3://pictures/line1/b.png"]
    for source in ("s3://pictures/line1", "s3://pictures/line1/"):
        assert find_pictures(source).paths == expected
    assert [find_pictures("s3://pictures/line1").read(path).decode() for path in expected] == [
        path.removeprefix("s3://pictures/") for path in expected
    ]
    assert set(expected) < set(find_pictures("s3://pictures").paths)


def test_a_listing_has_more_than_one_page(s3_server: S3Server) -> None:
    uris = sorted(s3_server.put(f"many/{number}.png", b"") for number in range(1_100))
    assert list(s3.list_uris("s3://pictures/many/")) == uris


def test_what_is_not_there_is_named(s3_server: S3Server) -> None:
    with pytest.raises(
        UserError, match=rf"input=s3://gone/a/: no such bucket at {s3_server.endpoint}\. AWS_ENDPOINT_URL"
    ):
        find_pictures("s3://gone/a")
    with pytest.raises(UserError, match="input=s3://pictures/gone: no picture there"):
        find_pictures("s3://pictures/gone")
    with pytest.raises(FileNotFoundError, match=r"s3://pictures/gone\.png: no such object"):
        s3.read("s3://pictures/gone.png")


def test_who_may_list_but_not_read_is_told_of_each_picture(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.put("closed/a.png", PICTURE)
    s3_server.become("lister", monkeypatch)
    with pytest.raises(
        UserError, match=r"none of 1 pictures can be read:\s+s3://pictures/closed/a\.png: .*Access Denied"
    ):
        predict_all("s3://pictures/closed", tmp_path / "out.csv")
    s3_server.become("stranger", monkeypatch)
    with pytest.raises(UserError, match=r"input=s3://pictures/closed/: InvalidAccessKeyId: .*AWS_PROFILE"):
        find_pictures("s3://pictures/closed")


def test_a_server_that_dies_ends_the_run_and_not_its_pictures(s3_server: S3Server, tmp_path: Path) -> None:
    s3_server.put("lost/a.png", PICTURE)
    pictures = find_pictures("s3://pictures/lost")
    (tmp_path / "out.csv").write_text("of yesterday", encoding="utf-8")
    s3_server.kill()
    with pytest.raises(UserError, match=r"s3://pictures/lost/a\.png: Could not connect to the endpoint URL"):
        predict(tiny(), pictures, tmp_path / "out.csv", batch_size=8)
    assert (tmp_path / "out.csv").read_text(encoding="utf-8") == "of yesterday"
    s3_server.start()
    assert pictures.read("s3://pictures/lost/a.png") == PICTURE
    s3_server.put("lost/b.png", b"after")
    assert s3.read("s3://pictures/lost/b.png") == b"after"


def test_the_command_reads_s3_and_reports_an_object_that_is_no_picture(s3_server: S3Server, tmp_path: Path) -> None:
    save_checkpoint(make_classifier(), tmp_path / "tiny.ckpt")
    s3_server.put("command/a.png", PICTURE)
    s3_server.put("command/b.png", b"nothing")
    words = ["checkpoint=tiny.ckpt", "input=s3://pictures/command"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "predict.py"), *words], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "s3://pictures/command/b.png: not a picture" in done.stderr
    rows = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert [(row["path"], row["decision"] == "unreadable") for row in rows] == [
        ("s3://pictures/command/a.png", False),
        ("s3://pictures/command/b.png", True),
    ]
