from __future__ import annotations

from pathlib import Path

import pytest

from flatfix.data.labelled import Labelled, find_labelled
from flatfix.errors import UserError
from tests.helpers.images import colours, encode
from tests.helpers.s3_server import S3Server

pytestmark = pytest.mark.service
PICTURE = encode(colours())


def readable(found: Labelled) -> list[bool]:
    return [not isinstance(picture, str) for picture in found.files.decoded(32, "squash", num_ahead=4)]


def test_folders_of_a_bucket_are_classes_and_a_table_there_names_its_pictures(
    s3_server: S3Server, tmp_path: Path
) -> None:
    for key in ("labelled/ok/a.png", "labelled/defective/b.png", "elsewhere/c.png"):
        s3_server.put(key, PICTURE)
    found = find_labelled("s3://pictures/labelled")
    assert found.files.paths == ["s3://pictures/labelled/defective/b.png", "s3://pictures/labelled/ok/a.png"]
    assert found.labels == ["defective", "ok"]
    assert readable(found) == [True, True]

    s3_server.put("labelled/t.csv", b"path,label\nok/a.png,ok\ns3://pictures/elsewhere/c.png,ok\nok/gone.png,ok\n")
    found = find_labelled("s3://pictures/labelled/t.csv")
    assert found.files.paths[:2] == ["s3://pictures/labelled/ok/a.png", "s3://pictures/elsewhere/c.png"]
    assert readable(found) == [True, True, False]
    # A table on a disk may name both.
    (tmp_path / "local.png").write_bytes(PICTURE)
    (tmp_path / "t.csv").write_text("path,label\nlocal.png,ok\ns3://pictures/elsewhere/c.png,ok\n", encoding="utf-8")
    assert readable(find_labelled(str(tmp_path / "t.csv"))) == [True, True]


def test_what_is_not_there_is_named(s3_server: S3Server) -> None:
    with pytest.raises(UserError, match=r"^data=s3://pictures/none: no"):
        find_labelled("s3://pictures/none")
    with pytest.raises(UserError, match=r"^data=s3://pictures/none/t\.csv: "):
        find_labelled("s3://pictures/none/t.csv")
