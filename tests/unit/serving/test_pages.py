from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from flatfix.serving.pages import PAGES, page
from flatfix.serving.problems import REASONS, overloaded


class Reader(HTMLParser):
    """Collect what a browser would run, apply and load."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.blocks: dict[str, list[str]] = {"script": [], "style": []}
        self.attributes: list[tuple[str, str, str]] = []
        self._open = ""
        self.feed(body.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in self.blocks:
            self._open = tag
            self.blocks[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.blocks[self._open][-1] += data


@pytest.fixture(params=PAGES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def policy_of(name: str) -> dict[str, list[str]]:
    directives = (each.split() for each in page(name)[1]["Content-Security-Policy"].split(";"))
    return {directive: values for directive, *values in directives}


@pytest.mark.parametrize("kind", ["script", "style"])
def test_the_policy_allows_the_script_and_the_style_of_the_page_and_no_other(name: str, kind: str) -> None:
    (text,) = Reader(page(name)[0]).blocks[kind]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert policy_of(name)[f"{kind}-src"] == [f"'sha256-{digest}'"]


def test_the_policy_lets_nothing_in_and_nothing_out_but_requests_to_the_server(name: str) -> None:
    policy = policy_of(name)
    assert policy["default-src"] == ["'none'"]
    assert policy["connect-src"] == ["'self'"]
    assert "unsafe" not in page(name)[1]["Content-Security-Policy"]


def test_the_page_loads_nothing_from_elsewhere(name: str) -> None:
    body = page(name)[0]
    loaded = [value for _, attribute, value in Reader(body).attributes if attribute in ("src", "href", "action")]
    assert loaded
    assert not [value for value in loaded if re.match(r"(?:[a-z]+:)?//", value)]
    assert not re.search(rb"@import|url\(", body)
    # What is left is the name of the SVG format, and the address that docs.html replaces by the server's own.
    addresses = set(re.findall(rb"https?://[\w.:/]+", body))
    assert addresses <= {b"http://www.w3.org/2000/svg", b"http://127.0.0.1:8000"}


def test_the_page_has_nothing_inline_that_the_policy_would_block(name: str) -> None:
    inline = [each for each in Reader(page(name)[0]).attributes if each[1] == "style" or each[1].startswith("on")]
    assert inline == []


def test_the_page_never_turns_text_into_markup(name: str) -> None:
    assert not re.search(rb"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", page(name)[0])


def test_the_page_is_read_once(name: str) -> None:
    assert page(name) is page(name)


def test_every_field_of_the_page_has_a_name_for_those_who_do_not_see_it() -> None:
    reader = Reader(page("index.html")[0])
    labelled = {value for tag, attribute, value in reader.attributes if (tag, attribute) == ("label", "for")}
    # The labels of these two stand around them.
    fields = set(re.findall(r'<(?:input|select)[^>]* id="([\w-]+)"', page("index.html")[0].decode()))
    assert fields - labelled == {"look", "strength"}


def test_the_documentation_explains_every_reason_of_a_problem() -> None:
    explained = re.findall(r'<tr id="problem-(\w+)">', page("docs.html")[0].decode())
    assert sorted(explained) == sorted(REASONS)


def test_the_example_of_a_problem_in_the_documentation_is_what_the_server_says() -> None:
    (shown,) = re.findall(r"application/problem\+json\n.*?\n\n(\{.*?\})", page("docs.html")[0].decode(), re.DOTALL)
    example = json.loads(shown)
    assert json.loads(overloaded().body(example["request_id"])) == example


def test_the_page_has_a_plain_headline_for_every_refusal_that_a_picture_can_meet() -> None:
    script = page("index.html")[0].decode()
    headlines = re.search(r"const HEADLINES = \{(.*?)\};", script, re.DOTALL)
    assert headlines is not None
    reasons = set(re.findall(r"(\w+): \"", headlines[1]))
    # The others come from a fault of the page or of the server, or are told by their status and the server's words.
    others = {"invalid_request", "too_many_files", "not_found", "method_not_allowed", "broken_http"}
    assert reasons == set(REASONS) - others - {"timeout_headers", "headers_too_large", "internal"}


def luminance(colour: str) -> float:
    """Return the relative luminance of `#rgb` or `#rrggbb`, as WCAG 2.2 defines it."""
    digits = colour.lstrip("#")
    channels = [
        int(each, 16) / 255
        for each in re.findall("..", digits if len(digits) == 6 else re.sub(".", r"\g<0>\g<0>", digits))
    ]
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_of_the_page_has_contrast_enough(name: str, theme: str) -> None:
    light, dark = re.findall(r":root \{(.*?)\}", page(name)[0].decode(), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", light if theme == "light" else dark))
    pairs = [
        (ink, ground) for ink in ("ink", "soft", "blue") for ground in ("ground", "card", "well") if ground in colours
    ]
    pairs += [(ink, f"{ink}-wash") for ink in ("blue", "red", "amber", "green") if f"{ink}-wash" in colours]
    pairs += [(ink, ground) for ink in ("ink", "soft") for ground in colours if ground.endswith("-wash")]
    pairs += [("on-blue", "blue")] if "on-blue" in colours else []

    def contrast(pair: tuple[str, str]) -> float:
        low, high = sorted(luminance(colours[each]) for each in pair)
        return (high + 0.05) / (low + 0.05)

    assert {pair: round(contrast(pair), 2) for pair in pairs if contrast(pair) < 4.5} == {}
