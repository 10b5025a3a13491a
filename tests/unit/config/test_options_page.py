from __future__ import annotations

from flatfix.config.options_page import PAGE, page
from tests.helpers.compose import CONF, ROOT


def test_the_page_is_what_the_config_says() -> None:
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(CONF), f"{PAGE} is behind conf/: run `make docs`"


def test_a_default_is_told_for_each_choice_that_has_its_own() -> None:
    text = page(CONF)
    for part in (
        "| **`adamw`** | Adam with weight decay",
        "| `optimizer.lr` | a number > 0 | `0.002`; adam, rmsprop: `0.001`; sgd: `0.05` | learning rate at its peak |",
        "| `optimizer.nesterov` | true or false | sgd: `true` |",
        "| `dataset.split.groups` | one of keep, stratify | `stratify`; others: `keep` |",
        "| `callbacks.qualify.min_accuracy` | null or a number | `null`; qualify@callbacks.qualify=elpv: `0.8`;",
        "| `input` | a text | required |",
    ):
        assert part in text


def test_what_two_commands_share_is_told_once() -> None:
    text = page(CONF)
    assert text.count("| `dataset.batch_size` |") == 1
    assert "As above: [`dataset`](#dataset), [`store`](#store), [`paths`](#paths)." in text
