from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from flatfix.errors import UserError
from flatfix.inference.card import Card, Parity, Permit
from flatfix.inference.decision import Decision

CARD = Card(
    model_name="resnet18",
    classes=("ok", "défectueux"),
    image_size=64,
    resize="squash",
    decision=Decision(temperature=1.5, positive=1, threshold=0.3, review=(0.2, 0.6), rule="recall of at least 0.95"),
    dataset={"name": "tires", "version": "v1", "digest": "ab" * 32},
    validation={"accuracy": 0.9, "f1": 0.8},
    test={"accuracy": 0.88, "f1": 0.79},
    qualification="f1 0.80, asked for at least 0.75",
    permits=(
        Permit(
            runtime="openvino",
            precision="bf16",
            num_pictures=1200,
            top1_agreement=0.9992,
            decision_agreement=1.0,
            max_difference=0.03,
        ),
    ),
    parity=Parity(max_difference=1e-5, tolerance=1e-3, top1_agreement=1.0, num_pictures=256),
    opset=20,
    num_features=512,
    run_id="5b0f",
    git_commit="c0ffee",
    versions={"torch": "2.15.0"},
    created="2026-01-02T03:04:05+00:00",
    files={"model.onnx": "cd" * 32},
)


def test_a_card_comes_back_from_json_as_it_was():
    assert Card.from_json(CARD.to_json()) == CARD


def test_the_card_is_json_that_people_can_read():
    assert json.loads(CARD.to_json())["decision"]["threshold"] == 0.3
    assert "défectueux".encode() in CARD.to_json()


def test_a_metric_that_is_not_defined_is_null_there_and_nan_again_here():
    data = replace(CARD, test={"accuracy": 0.88, "auroc": math.nan}).to_json()

    assert json.loads(data)["test"] == {"accuracy": 0.88, "auroc": None}
    assert math.isnan(Card.from_json(data).test["auroc"])


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"7", b'{"model_name": "cnn"}', b"\xff\xfe", b'{"schema_version": 1}'],
)
def test_something_else_than_a_card_is_refused(data):
    with pytest.raises(ValueError, match="not the card of a model package"):
        Card.from_json(data)


def test_an_altered_card_is_refused():
    data = CARD.to_json().replace(b'"threshold": 0.3', b'"threshold": 0.4')

    with pytest.raises(ValueError, match="its sha256 differs"):
        Card.from_json(data)


def test_a_card_of_another_schema_version_says_what_to_do():
    with pytest.raises(UserError, match="schema version 99.*reads 1.*train again"):
        Card.from_json(replace(CARD, schema_version=99).to_json())
