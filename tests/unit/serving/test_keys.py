from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flatfix.errors import UserError
from flatfix.serving import keys
from flatfix.serving.keys import Keys, add
from flatfix.serving.problems import Problem

HASH = "0" * 64


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def refusal(known: Keys, authorization: str | None, scope: str = "predict") -> Problem:
    with pytest.raises(Problem) as raised:
        known.check(authorization, scope)
    return raised.value


def touch_later(file: Path, text: str) -> None:
    """Write, and let time have passed: two writes may fall into one tick of the file system's clock."""
    before = file.stat().st_mtime_ns if file.exists() else 0
    file.write_text(text)
    os.utime(file, ns=(before + 10**9, before + 10**9))


def test_a_key_that_was_made_is_known_by_its_name(file):
    robot, boss = add(file, "robot", ["predict"], None), add(file, "boss", ["predict", "admin"], None)
    known = Keys.read(file)

    assert known.check(f"Bearer {robot}", "predict") == "robot"
    assert known.check(f"bearer  {boss} ", "admin") == "boss"


def test_the_file_holds_no_key_and_is_for_its_owner_only(file):
    key = add(file, "robot", ["predict"], 60)

    assert key not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert set(json.loads(file.read_text())["robot"]) == {"sha256", "scopes", "per_minute"}


def test_keys_have_256_random_bits(file):
    made = {add(file, name, ["predict"], None) for name in "abc"}

    assert len(made) == 3 and all(len(key) >= 43 for key in made)


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Basic KEY", "KEY", "Bearer KEY KEY", "Bearer ä\udcff", "Bearer " + HASH],
)
def test_without_a_key_that_is_known_nobody_passes(file, authorization):
    key = add(file, "robot", ["predict"], None)
    problem = refusal(Keys.read(file), authorization and authorization.replace("KEY", key))

    assert (problem.status, problem.reason, problem.headers) == (401, "no_key", {"WWW-Authenticate": "Bearer"})


def test_a_key_is_good_for_its_scopes_only(file):
    key = add(file, "robot", ["predict"], None)
    problem = refusal(Keys.read(file), f"Bearer {key}", "admin")

    assert (problem.status, problem.reason) == (403, "forbidden")


def test_a_key_that_is_used_up_says_when_to_come_back_and_others_are_not(file, monkeypatch):
    used, other = add(file, "used", ["predict"], 6), add(file, "other", ["predict"], 6)
    now = [1000.0]
    monkeypatch.setattr(keys.time, "monotonic", lambda: now[0])
    known = Keys.read(file)

    assert [known.check(f"Bearer {used}", "predict") for _ in range(6)] == ["used"] * 6
    problem = refusal(known, f"Bearer {used}")
    assert (problem.status, problem.reason, problem.headers["Retry-After"]) == (429, "rate_limited", "10")
    assert known.check(f"Bearer {other}", "predict") == "other"

    now[0] += 10
    assert known.check(f"Bearer {used}", "predict") == "used"
    assert refusal(known, f"Bearer {used}").status == 429
    now[0] += 10_000
    assert [known.check(f"Bearer {used}", "predict") for _ in range(6)] == ["used"] * 6
    assert refusal(known, f"Bearer {used}").status == 429


def test_a_file_that_changes_is_read_again_and_rates_go_on(file, monkeypatch):
    monkeypatch.setattr(keys.time, "monotonic", lambda: 1000.0)
    key = add(file, "robot", ["predict"], 1)
    known = Keys.read(file)
    known.check(f"Bearer {key}", "predict")
    late = add(file, "late", ["predict"], None)

    assert known.check(f"Bearer {late}", "predict") == "late"
    assert refusal(known, f"Bearer {key}").status == 429
    entries = json.loads(file.read_text())
    touch_later(file, json.dumps({"robot": entries["robot"]}))
    assert refusal(known, f"Bearer {late}").status == 401


def test_while_the_file_cannot_be_read_the_keys_of_before_hold(file):
    key = add(file, "robot", ["predict"], None)
    known = Keys.read(file)
    good = file.read_text()

    touch_later(file, "{")
    assert known.check(f"Bearer {key}", "predict") == "robot"
    file.unlink()
    assert known.check(f"Bearer {key}", "predict") == "robot"
    touch_later(file, good.replace("robot", "renamed"))
    assert known.check(f"Bearer {key}", "predict") == "renamed"


def test_a_file_in_yaml_is_as_good(file):
    key = add(file, "robot", ["predict"], 60)
    digest = json.loads(file.read_text())["robot"]["sha256"]
    file.write_text(f"robot:\n  sha256: '{digest}'\n  scopes: [predict]\n")

    assert Keys.read(file).check(f"Bearer {key}", "predict") == "robot"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "map|mapping"),
        ("{", "cannot be read"),
        ("a: b", "a: has to be"),
        ("a: {key: x}", "a: has to be"),
        ("a: {sha256: abc, scopes: [predict]}", "64 hexadecimal digits"),
        (f"a: {{sha256: '{HASH}', scopes: []}}", "scopes has to be a list"),
        (f"a: {{sha256: '{HASH}', scopes: predict}}", "scopes has to be a list"),
        (f"a: {{sha256: '{HASH}', scopes: [predikt]}}", "Did you mean 'predict'"),
        (f"a: {{sha256: '{HASH}', scopes: [predict], per_minute: 0}}", "per_minute"),
        (f"a: {{sha256: '{HASH}', scopes: [predict], per_minute: true}}", "per_minute"),
    ],
)
def test_a_file_of_something_else_is_refused_with_its_fault(file, text, said):
    file.write_text(text)

    with pytest.raises(UserError, match=said) as raised:
        Keys.read(file)
    assert str(file) in str(raised.value)


def test_a_missing_file_says_how_to_make_it(file):
    with pytest.raises(UserError, match="python -m flatfix.serving.keys NAME --file"):
        Keys.read(file)


def test_the_command_prints_the_key_once_and_refuses_a_name_that_is_taken(file, capsys):
    assert keys.main(["robot", "--scope", "admin", "--per-minute", "60", "--file", str(file)]) == 0
    printed = capsys.readouterr().out.strip()
    assert Keys.read(file).check(f"Bearer {printed}", "admin") == "robot"

    before = file.read_text()
    assert keys.main(["robot", "--file", str(file)]) == 2
    assert "has a key of this name" in capsys.readouterr().err
    assert file.read_text() == before


@pytest.mark.parametrize("arguments", [["a b"], ["../a"], ["a", "--per-minute", "0"]])
def test_the_command_refuses_what_makes_no_sense(file, arguments):
    assert keys.main([*arguments, "--file", str(file)]) == 2
    assert not file.exists()
