"""The page in Chromium: drop a recording, see its frames, ask, watch the stages; by keyboard, light and dark."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from tests.browsers import chromium, new_context
from tests.serving.conftest import Served
from tests.started import PATIENCE_S, wait_for
from unfuse.events import write_eventgpt_npy
from unfuse.serving.page import page as served_page
from unfuse.serving.settings import ServeSettings
from unfuse.testing import synthetic_stream

TOKEN = "correct-horse-battery-staple"
Open = Callable[..., "Opened"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


class Opened:
    """A page with its console messages and requests."""

    def __init__(self, page: Page, url: str):
        self.page = page
        self.messages: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.messages.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.messages.append(f"uncaught: {error}"))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(url)

    def use(self, recording: Path) -> None:
        """Chooses a file and waits until it is encoded."""
        self.page.set_input_files("#file", recording)
        expect(self.page.locator("#scene")).to_be_visible()

    def answer(self, number: int) -> Any:
        """The answer with its times, once it has ended."""
        item = self.page.locator("#answers li").nth(number)
        expect(item.locator(".writing")).to_have_count(0)
        return item

    def times(self, element: Any) -> dict[str, str]:
        names, values = element.locator("dt").all_text_contents(), element.locator("dd").all_text_contents()
        return dict(zip(names, values, strict=True))


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    contexts = []

    def opened(served: Served, *, width: int = 1200, **options: Any) -> Opened:
        context = new_context(browser, viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        return Opened(context.new_page(), served.url)

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_questions_about_a_recording(
    served: Served, open_page: Open, scheme: str, recording: Path, tmp_path: Path
) -> None:
    served.http.delete("/v1/files/" + served.http.post("/v1/unfuse/demo/demo:0").json()["id"])
    opened = open_page(served, color_scheme=scheme)
    page = opened.page
    expect(page.locator("#model")).to_have_text("demo (eventgpt) on cpu, float32, engine eager")
    opened.use(recording)
    assert page.locator("#strip img").count() == 5
    page.wait_for_function("document.getElementById('frame').naturalWidth == 640")
    assert "30,627 events, 5 frames, 70 positions" in (page.text_content("#facts") or "")
    first = opened.times(page.locator("#scene-stages"))
    assert list(first) == ["load", "preprocess", "encode"]
    assert all(float(value.removesuffix(" ms")) > 0 for value in first.values())

    for number, question in enumerate(("What moves?", "How fast is it?")):
        page.fill("#question", question)
        page.keyboard.press("Enter")
        item = opened.answer(number)
        assert item.locator(".asked").text_content() == question
        assert item.locator(".answer").text_content()
        times = opened.times(item)
        assert list(times) == ["queue", "load", "preprocess", "encode", "prefill", "decode"]
        assert times["load"] == times["encode"] == "0 (reused)"
        assert float(times["decode"].removesuffix(" ms")) > 0
        widths = item.locator(".bar i").evaluate_all("all => all.map(each => each.getBoundingClientRect().width)")
        assert widths[1] == widths[3] == 0, "what was reused takes no room"
        assert widths[5] > 0
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 21, 26)"}[scheme]
    assert opened.messages == []
    assert all(url.startswith((served.url, "blob:")) for url in opened.requests), "nothing comes from elsewhere"
    violations = Axe().run(page).response["violations"]
    assert violations == [], [(v["id"], [node["html"] for node in v["nodes"]]) for v in violations]
    if folder := os.environ.get("UNFUSE_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/serve-{scheme}.png", full_page=True)


def test_all_by_keyboard(served: Served, open_page: Open) -> None:
    page = open_page(served).page
    expect(page.locator("#use-demo")).to_be_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "jump"
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached[:3] == ["file", "demo", "use-demo"]
    page.focus("#use-demo")
    page.keyboard.press("Enter")
    expect(page.locator("#scene")).to_be_visible()
    expect(page.locator("#question"), "the next step is at hand").to_be_focused()
    frames = page.locator("#strip button")
    frames.nth(2).focus()
    page.keyboard.press("Enter")
    assert [b.get_attribute("aria-pressed") for b in frames.all()] == ["false", "false", "true", "false", "false"]
    assert (page.get_attribute("#frame", "alt") or "").startswith("Frame 3 of 5")


def test_an_answer_can_be_stopped(served: Served, open_page: Open, recording: Path, release: threading.Event) -> None:
    """It is held in its middle until it has been stopped."""
    opened = open_page(served)
    page = opened.page
    opened.use(recording)
    page.locator("#ask summary").click()
    page.fill("#max-tokens", "4000")
    page.fill("#question", "What moves?")
    page.keyboard.press("Enter")
    expect(page.locator("#answers .answer")).not_to_be_empty()
    expect(page.locator("#answers dd").last).to_contain_text("so far")
    page.keyboard.press("Escape")
    item = opened.answer(0)
    assert "stopped" in (item.text_content() or "")
    assert not release.is_set()
    expect(page.locator("#send")).to_be_visible()


def test_a_file_is_dropped(served: Served, open_page: Open, tmp_path: Path) -> None:
    page = open_page(served).page
    write_eventgpt_npy(tmp_path / "small.npy", synthetic_stream(500))
    data = page.evaluate_handle(
        """(bytes) => { const data = new DataTransfer();
            data.items.add(new File([Uint8Array.from(bytes)], "dropped.npy")); return data; }""",
        list((tmp_path / "small.npy").read_bytes()),
    )
    page.dispatch_event("#drop", "dragenter", {"dataTransfer": data})
    expect(page.locator("#drop.over")).to_be_visible()
    page.dispatch_event("#drop", "drop", {"dataTransfer": data})
    expect(page.locator("#scene")).to_be_visible()
    expect(page.locator("#drop.over")).to_have_count(0)


def test_problems_are_displayed(served: Served, open_page: Open, tmp_path: Path) -> None:
    page = open_page(served).page
    page.fill("#question", "What moves?")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_have_text("Choose a recording first.")
    assert page.input_value("#question") == "What moves?", "not to be typed again"
    evil = tmp_path / "<img src=x onerror=window.pwned=1>.npy"
    evil.write_bytes(b"nothing of the kind \x00")
    page.set_input_files("#file", evil)
    expect(page.locator("#upload-problem")).to_contain_text(f"{evil.name}: found an unknown format")
    expect(page.locator("#problem")).to_be_empty()
    evil.write_bytes(b"nor of this \x00")
    page.set_input_files("#file", evil)
    expect(page.locator("#upload-problem")).to_contain_text("6e 6f 72")
    large = tmp_path / "large.npy"
    large.write_bytes(bytes(9 << 20))
    page.set_input_files("#file", large)
    expect(page.locator("#upload-problem")).to_have_text("That is 9.0 MiB; this server takes 8.0 MiB.")
    assert page.evaluate("window.pwned") is None


def test_a_problem_stays_when_the_server_answers_late(served: Served, open_page: Open) -> None:
    """Enter before the page has the server's data: the page names the missing part, and the message stays."""
    page = open_page(served).page
    pending: list[Route] = []
    page.route("**/v1/unfuse", lambda route: pending.append(route))  # a builtin cannot be a handler
    page.reload()
    page.fill("#question", "What moves?")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_have_text("Choose a recording first.")
    wait_for(lambda: pending or page.wait_for_timeout(1))
    pending[0].continue_()
    expect(page.locator("html[data-state=ready]")).to_be_attached()
    expect(page.locator("#problem")).to_have_text("Choose a recording first.")


def test_a_name_is_text(served: Served, open_page: Open, recording: Path, tmp_path: Path) -> None:
    evil = tmp_path / "<img src=x onerror=window.pwned=1>.npy"
    stored = served.http.post("/v1/unfuse/demo/demo:0").json()["id"]
    served.http.delete(f"/v1/files/{stored}")
    shutil.copyfile(recording, evil)
    opened = open_page(served)
    opened.use(evil)
    assert evil.name in (opened.page.text_content("#facts") or "")
    assert opened.page.evaluate("window.pwned") is None
    assert opened.messages == []


def test_answers_say_what_they_are_about(served: Served, open_page: Open, recording: Path) -> None:
    opened = open_page(served)
    opened.use(recording)
    abouts = []
    for number, name in enumerate(("", "", "demo:2")):
        if name:
            opened.page.select_option("#demo", name)
            opened.page.click("#use-demo")
            expect(opened.page.locator("#facts")).to_contain_text(name)
        opened.page.locator("#ideas button").first.click()
        abouts.append(opened.answer(number).locator("p.quiet").all_text_contents())
    assert abouts == [[f"About {recording.name}"], [], ["About demo:2"]], "where it changes"
    served.http.delete("/v1/files/" + served.http.post("/v1/unfuse/demo/demo:2").json()["id"])
    opened.page.fill("#question", "Where to?")
    opened.page.keyboard.press("Enter")
    expect(opened.page.locator("#problem")).to_contain_text("upload it again")
    assert opened.page.input_value("#question") == "Where to?", "to be asked again"


def test_on_a_phone(served: Served, open_page: Open, recording: Path, tmp_path: Path) -> None:
    opened = open_page(served, width=360)
    (tmp_path / "notes.md").write_bytes(b"no recording \x00")
    opened.page.set_input_files("#file", tmp_path / "notes.md")
    expect(opened.page.locator("#upload-problem")).to_contain_text("notes.md: found an unknown format")
    expect(opened.page.locator("#upload-problem")).to_be_in_viewport()
    opened.use(recording)
    opened.page.locator("#ideas button").first.click()
    opened.answer(0)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360
    if folder := os.environ.get("UNFUSE_SCREENSHOTS"):
        opened.page.screenshot(path=f"{folder}/serve-phone.png", full_page=True)


def test_a_token_is_requested(demo_model: Any, open_page: Open, recording: Path) -> None:
    locked = Served(demo_model, ServeSettings(port=0, token=TOKEN))
    try:
        opened = open_page(locked)
        page = opened.page
        expect(page.locator("#locked")).to_be_visible()
        page.fill("#token", "a wrong one of length")
        page.keyboard.press("Enter")
        expect(page.locator("#problem")).to_contain_text("no valid token")
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#locked")).to_be_hidden()
        opened.use(recording)
        page.locator("#ideas button").first.click()
        assert opened.answer(0).locator(".answer").text_content()
        stored = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
        assert stored == [0, 0, ""]
    finally:
        locked.close()


def refusals(opened: Opened) -> list[str]:
    return [line for line in opened.messages if "Content Security Policy" in line]


def test_a_script_that_is_not_the_page_s_own_does_not_run(served: Served, open_page: Open) -> None:
    """The control of the policy: the same page with one more script and one foreign picture."""
    policy = served_page().policy
    assert "unsafe" not in policy
    opened = open_page(served)
    opened.page.evaluate(
        """() => { const one = document.createElement("script"); one.textContent = "window.pwned = 1";
            const two = document.createElement("img"); two.src = "http://127.0.0.1:9/x";
            document.body.append(one, two); }"""
    )
    deadline = time.monotonic() + PATIENCE_S
    while len(refusals(opened)) < 2 and time.monotonic() < deadline:
        opened.page.wait_for_timeout(20)  # messages of the page come meanwhile
    assert opened.page.evaluate("window.pwned") is None
    assert len(refusals(opened)) == 2


def test_the_page_is_one_document() -> None:
    made = served_page()
    assert "/*STYLE*/" not in made.html
    assert "/*SCRIPT*/" not in made.html
    assert "http" not in made.html.replace("http-equiv", "")
    assert made.policy.count("'sha256-") == 2
