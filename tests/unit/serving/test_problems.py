from __future__ import annotations

import json

import pytest

from flatfix.serving.problems import REASONS, Problem


def test_a_problem_is_rfc_9457_json_with_the_request_id():
    problem = Problem(413, "Too many pictures", 'At most "32".', reason="too_many_files")

    assert json.loads(problem.body("a-b_c.1")) == {
        "type": "/problems/too_many_files",
        "title": "Too many pictures",
        "status": 413,
        "detail": 'At most "32".',
        "request_id": "a-b_c.1",
    }


def test_a_problem_that_is_sent_twice_names_each_request():
    problem = Problem(503, "Overloaded", "Later.", reason="overloaded")

    assert [json.loads(problem.body(name))["request_id"] for name in ("one", "two")] == ["one", "two"]


@pytest.mark.parametrize("detail", ['ends in a quote"', "\u2028 line", "null \x00", "lone \udcff surrogate", "\\"])
def test_a_problem_may_tell_of_odd_characters(detail):
    assert json.loads(Problem(422, "Invalid", detail, reason="invalid_request").body("x"))["detail"] == detail


def test_reasons_are_bounded():
    with pytest.raises(ValueError, match="full_moon: not a reason"):
        Problem(503, "Overloaded", "Later.", reason="full_moon")
    assert len(set(REASONS)) == len(REASONS)
