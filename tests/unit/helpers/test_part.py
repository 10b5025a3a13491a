from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers.part import Part, parse

ROOT = Path(__file__).resolve().parents[3]


def test_every_test_is_in_exactly_one_part_and_no_part_is_empty():
    ids = [f"tests/unit/test_x.py::test_y[{number}]" for number in range(200)]
    sizes = Counter(index for test_id in ids for index in range(4) if Part(index, 4).holds(test_id))
    assert sum(sizes.values()) == 200
    assert min(sizes[index] for index in range(4)) > 25


@pytest.mark.parametrize("text", ["", "1", "4/4", "1/0", "-1/4", "a/b"])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="I/K"):
        parse(text)


def test_pytest_runs_the_tests_of_the_part_and_counts_the_others_as_deselected(tmp_path):
    tests = tmp_path / "test_planted.py"
    tests.write_text("import pytest\n\n@pytest.mark.parametrize('n', range(20))\ndef test_planted(n): ...\n")
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "-p", "tests.helpers.part"]
    bare = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    num_run = []
    for index in range(2):
        output = subprocess.run(
            [*command, f"--part={index}/2", tests], cwd=ROOT, env=bare, capture_output=True, text=True, check=True
        ).stdout
        passed, deselected = (int(re.search(rf"(\d+) {word}", output)[1]) for word in ("passed", "deselected"))
        assert passed + deselected == 20
        num_run.append(passed)
    assert sum(num_run) == 20
