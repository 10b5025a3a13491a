from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from flatfix.console import progress


def test_a_bar_closes_with_count_and_rate(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("Decoding", 5000) as advance, ThreadPoolExecutor(8) as pool:
        list(pool.map(advance, [1] * 5000))
    assert re.fullmatch(r"Decoding: 5,000 pictures in \d+\.\d s \([\d,]+/s\)\n", capsys.readouterr().out)


def test_bytes_are_told_in_megabytes(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("Storing", 2_500_000, "bytes") as advance:
        advance(2_000_000)
        advance(500_000)
    assert re.fullmatch(r"Storing: 2\.5 MB in \d+\.\d s \([\d,]+ MB/s\)\n", capsys.readouterr().out)


def test_work_that_breaks_off_is_not_said_to_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), progress("Decoding", 5) as advance:
        advance(1)
        raise KeyError
    assert capsys.readouterr().out == ""
