"""The pages in a real browser, against the real server."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, JSHandle, Page, expect, sync_playwright

from flatfix.inference.package import Package
from flatfix.serving import keys
from tests.helpers.flatfix_server import FlatfixServer
from tests.helpers.images import encode
from tests.helpers.packages import make_package, pictures
from tests.helpers.serving import NAME, promoted

CHROMIUM = shutil.which("chromium")
TIMEOUT_MS = 20_000
IS_CI = os.environ.get("CI") == "true"

pytestmark = [
    pytest.mark.service,
    pytest.mark.skipif(CHROMIUM is None and not IS_CI, reason="chromium is not installed: see .ci/apt.txt"),
]

DEVICES: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
    "narrow": {"viewport": {"width": 360, "height": 640}, "is_mobile": True, "has_touch": True},
}
PICTURES = [encode(pixels, "JPEG") for pixels in pictures(3, size=64, seed=5)]
TEXT = b"a note, not a picture\n"


@dataclass
class Tab:
    """One open page, and what went wrong in it."""

    page: Page
    faults: list[str]

    def open(self, url: str) -> Page:
        self.page.goto(url)
        return self.page

    def transfer(self, **files: bytes) -> JSHandle:
        """Make what a browser hands over when files are dropped or pasted; `_` stands for the dot of a name."""
        given = [[name.replace("_", "."), base64.b64encode(data).decode()] for name, data in files.items()]
        return self.page.evaluate_handle(
            """given => {
                const transfer = new DataTransfer();
                for (const [name, data] of given) {
                    transfer.items.add(new File([Uint8Array.from(atob(data), each => each.charCodeAt(0))], name));
                }
                return transfer;
            }""",
            given,
        )

    def drop(self, **files: bytes) -> None:
        transfer = self.transfer(**files)
        for event in ("dragenter", "dragover", "drop"):
            self.page.dispatch_event("#intake", event, {"dataTransfer": transfer})

    def expect_no_scrolling_sideways(self) -> None:
        scrolled, width = self.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert scrolled <= width


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None, ".ci/apt.txt names chromium: install it"
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=DEVICES)
def tab(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Tab]:
    with browser.new_context(**DEVICES[request.param]) as context:
        tab = Tab(context.new_page(), [])
        tab.page.on("console", lambda said: tab.faults.append(said.text) if said.type in ("error", "warning") else None)
        tab.page.on("pageerror", lambda error: tab.faults.append(str(error)))
        yield tab


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return make_package(tmp_path_factory.mktemp("package") / "package")


@pytest.fixture(scope="module")
def server(package: Package, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlatfixServer]:
    folder = tmp_path_factory.mktemp("shelf")
    shelf, _ = promoted(folder, [package])
    with FlatfixServer(folder / "server", shelf.uri, f"registry.name={NAME}") as server:
        yield server


def test_a_dropped_picture_is_answered_explained_and_corrected(tab: Tab, server: FlatfixServer) -> None:
    page = tab.open(server.url)
    expect(page.locator("#model")).to_contain_text(re.compile("tires.*version 1 · production"))

    tab.drop(part_jpg=PICTURES[0])

    (said,) = server.predict(PICTURES[0])["predictions"]
    expect(page.locator("#word")).to_have_text(
        "A person should look" if said["decision"] == "review" else said["class"]
    )
    expect(page.locator("#bars li")).to_have_count(2)
    ranked = sorted(said["probabilities"].items(), key=lambda item: -item[1])
    for row, (name, share) in zip(page.locator("#bars li").all(), ranked, strict=True):
        expect(row).to_contain_text(re.compile(rf"{name}.*{100 * share:.1f}\s%"))
    expect(page.locator("#bars")).to_contain_text(
        re.compile(r"decided from 68\s% on, a person looks from 67\s% to 69\s%")
    )
    expect(page.locator("#fact-model")).to_have_text("tires, version 1")
    expect(page.locator("#heat")).to_be_hidden()

    page.get_by_role("switch", name="Show where it looked").check()
    expect(page.locator("#heat")).to_be_visible()
    expect(page.locator("#look-say")).to_contain_text(said["class"])
    page.get_by_label("Strength").fill("30")
    assert page.evaluate("document.getElementById('heat').style.opacity") == "0.3"

    truth = ({*said["probabilities"]} - {said["class"]}).pop()
    page.get_by_label("No, it is").select_option(truth)
    page.get_by_role("button", name="Send the true class").click()
    expect(page.locator("#feedback-ask")).to_have_text(f"Thank you. The server has kept “{truth}” as the truth.")
    expect(page.locator("#feedback-ask")).to_be_focused()
    *_, record = sorted((server.folder / "serving").glob("feedback-*.jsonl"))
    told = json.loads(record.read_text().splitlines()[-1])
    assert (told["request_id"], told["label"]) == (page.locator("#fact-request").inner_text(), truth)

    tab.expect_no_scrolling_sideways()
    assert tab.faults == []


def test_a_text_file_gets_the_reason_in_plain_words(tab: Tab, server: FlatfixServer) -> None:
    page = tab.open(server.url)

    page.set_input_files("#files", {"name": "note.txt", "mimeType": "text/plain", "buffer": TEXT})

    expect(page.locator("#word")).to_have_text("This is not a picture the server can read")
    expect(page.locator("#why")).to_have_text(server.post("/predict", TEXT)[1]["detail"])
    expect(page.locator("#fact-request")).to_have_text(re.compile("^[0-9a-f]{32}$"))
    expect(page.locator("#again")).to_be_hidden()
    expect(page.locator("#live")).to_contain_text("note.txt: This is not a picture")
    tab.expect_no_scrolling_sideways()
    # Chromium itself notes every refused request.
    assert [fault for fault in tab.faults if "status of 415" not in fault] == []


@pytest.mark.parametrize("tab", ["desktop"], indirect=True)
def test_a_pasted_picture_is_answered(tab: Tab, server: FlatfixServer) -> None:
    page = tab.open(server.url)

    transfer = tab.transfer(image_png=PICTURES[1])
    page.evaluate(
        "clipboardData => document.dispatchEvent(new ClipboardEvent('paste', {clipboardData, cancelable: true}))",
        transfer,
    )

    expect(page.locator("#bars li")).to_have_count(2)
    expect(page.locator("#fact-file")).to_contain_text("image.png")
    assert tab.faults == []


@pytest.mark.parametrize("tab", ["phone"], indirect=True)
def test_a_phone_offers_its_camera(tab: Tab, server: FlatfixServer) -> None:
    page = tab.open(server.url)
    expect(page.locator("label", has_text="Take a picture")).to_be_visible()

    page.set_input_files("#camera", {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": PICTURES[2]})

    expect(page.locator("#bars li")).to_have_count(2)
    expect(page.locator("#word")).to_be_in_viewport()
    assert tab.faults == []


@pytest.mark.parametrize("tab", ["desktop"], indirect=True)
def test_a_file_that_is_too_large_is_refused_in_plain_words(tab: Tab, server: FlatfixServer, tmp_path: Path) -> None:
    page = tab.open(server.url)

    (tmp_path / "scan.tif").write_bytes(bytes(20_000_000))
    page.set_input_files("#files", tmp_path / "scan.tif")

    expect(page.locator("#word")).to_have_text("This file is too large")
    expect(page.locator("#why")).to_contain_text("16 MB")
    assert [fault for fault in tab.faults if "status of 413" not in fault] == []


def test_several_pictures_stand_side_by_side_and_the_keyboard_moves_between_them(
    tab: Tab, server: FlatfixServer
) -> None:
    page = tab.open(server.url)

    tab.drop(one_jpg=PICTURES[0], two_jpg=PICTURES[1], note_txt=TEXT, three_jpg=PICTURES[2])

    tiles = page.locator("#strip button")
    expect(tiles).to_have_count(4)
    expect(page.locator("#gallery-title")).to_contain_text("4 pictures")
    expect(page.locator("#gallery-title")).to_contain_text("1 without an answer")
    expect(page.locator("#gallery-title")).not_to_contain_text("waiting")
    expect(page.locator("#fact-file")).to_contain_text("one.jpg")
    tiles.nth(0).focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#fact-file")).to_contain_text("two.jpg")
    expect(tiles.nth(1)).to_be_focused()
    tab.expect_no_scrolling_sideways()

    page.get_by_role("button", name="Clear all").click()
    expect(page.locator("#result")).to_be_hidden()


@pytest.mark.parametrize("tab", ["desktop"], indirect=True)
def test_a_server_that_wants_a_key_is_given_one_by_the_page(tab: Tab, package: Package, tmp_path: Path) -> None:
    shelf, _ = promoted(tmp_path, [package])
    key = keys.add(tmp_path / "keys.json", "line-3", ["predict"], None)
    options = (f"registry.name={NAME}", f"auth.keys={tmp_path / 'keys.json'}", "auth.predict=true")
    with FlatfixServer(tmp_path / "server", shelf.uri, *options) as server:
        page = tab.open(server.url)
        expect(page.get_by_label("API key")).to_be_hidden()
        page.set_input_files("#files", {"name": "part.jpg", "mimeType": "image/jpeg", "buffer": PICTURES[0]})
        expect(page.get_by_label("API key")).to_be_focused()

        page.get_by_label("API key").fill("not the key")
        page.keyboard.press("Enter")
        expect(page.locator("#key-why")).to_have_text("The server does not know this key.")
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")

        expect(page.locator("#bars li")).to_have_count(2)
        expect(page.get_by_label("API key")).to_be_hidden()
        page.get_by_role("switch", name="Show where it looked").check()
        expect(page.locator("#heat")).to_be_visible()
        page.get_by_role("button", name=re.compile("^(Yes, it|It) is")).click()
        expect(page.locator("#feedback-ask")).to_contain_text("Thank you")
        assert [fault for fault in tab.faults if "status of 401" not in fault] == []


@pytest.mark.parametrize("tab", ["phone"], indirect=True)
def test_a_server_without_a_model_says_when_to_try_again_and_then_answers(
    tab: Tab, package: Package, tmp_path: Path
) -> None:
    shelf, (version,) = promoted(tmp_path, [package])
    artifacts = shelf.artifacts(version)
    artifacts.rename(tmp_path / "away")
    with FlatfixServer(tmp_path / "server", shelf.uri, f"registry.name={NAME}", waits_for_model=False) as server:
        page = tab.open(server.url)
        expect(page.locator("#model-name")).to_have_text("loading the model…")
        page.set_input_files("#files", {"name": "part.jpg", "mimeType": "image/jpeg", "buffer": PICTURES[0]})
        expect(page.locator("#word")).to_have_text("The server is still loading its model")
        again = page.locator("#again")
        expect(again).to_have_text(re.compile(r"Try again in \d s"))
        expect(again).to_be_disabled()

        (tmp_path / "away").rename(artifacts)
        expect(page.locator("#model-facts")).to_have_text("version 1 · production")
        expect(again).to_be_enabled()
        again.click()

        expect(page.locator("#bars li")).to_have_count(2)
        tab.expect_no_scrolling_sideways()
        assert [fault for fault in tab.faults if "status of 503" not in fault] == []


def test_the_documentation_shows_every_endpoint_of_the_server(tab: Tab, server: FlatfixServer) -> None:
    page = tab.open(f"{server.url}/docs")

    paths = json.loads(server.get("/openapi.json")[1])["paths"]
    expect(page.locator("#endpoints section")).to_have_count(sum(len(each) for each in paths.values()))
    for path in paths:
        expect(page.locator("#endpoints h2", has=page.get_by_text(path, exact=True))).to_have_count(1)
    expect(page.locator("#post-predict")).to_contain_text(f"curl {server.url}/predict")
    expect(page.locator("#post-predict")).to_contain_text('"model_version": "7"')
    page.get_by_role("link", name="When something is wrong").click()
    expect(page.locator("#problems-title")).to_be_in_viewport()
    tab.expect_no_scrolling_sideways()
    assert tab.faults == []
