"""How the page looks and is reached: on telephones, tablets and desks, light and dark, by keyboard, by ear."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from page_driver import ask, last_answer, script, send, until

THOUGHT = "The reader wants to see Markdown. So: a list, code, a formula and a table."
ANSWER = (Path(__file__).parent / "answer.md").read_text()
CALL = {"index": 0, "id": "call-1", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
HEIGHTS = {390: 844, 820: 1180, 1440: 900}
SIZES = [(390, "dark"), (820, "light"), (1440, "light")]  # no colour depends on the width, no place on the scheme


@pytest.fixture(params=SIZES, ids="{0[0]}-{0[1]}".format)
def sized(request: pytest.FixtureRequest, open_page: Callable[..., Any]) -> Any:
    """The page on a telephone, a tablet and a desk, dark or light; those held in a hand have no pointer."""
    width, scheme = request.param
    size = {"width": width, "height": HEIGHTS[width]}
    page = open_page(viewport=size, color_scheme=scheme, has_touch=width < 1000, is_mobile=width < 1000)
    page.name = f"{width}-{scheme}"
    return page


def findings(page: Any) -> list[str]:
    """What axe-core has against the page as it is now, its best practices included."""
    axe = pytest.importorskip("axe_playwright_python", reason="needs pip install axe-playwright-python")
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text())
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [f"{one['id']}: {node['html']}" for one in found["violations"] for node in one["nodes"]]


def picture(page: Any, tmp_path: Path, name: str) -> None:
    """Kept in the folder that QWENCH_SCREENSHOTS names, for people to look at."""
    page.screenshot(path=f"{os.environ.get('QWENCH_SCREENSHOTS', tmp_path)}/{name}-{page.name}.png")


def is_tidy(page: Any) -> None:
    """Nothing is wider than the screen, and the header is one row."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    heights = page.evaluate("[...document.querySelector('header').children].map((part) => part.offsetHeight)")
    assert page.evaluate("document.querySelector('header').offsetHeight") <= 56 and max(heights) <= 56


def test_every_state_without_a_finding(sized: Any, tmp_path: Path) -> None:
    """Empty, writing, answered with all that Markdown has, a call, an error, both panels."""
    page = sized
    is_tidy(page)
    picture(page, tmp_path, "empty")
    assert findings(page) == []
    script(page, ANSWER, thought=THOUGHT, pause_ms=30)
    send(page, "How does quicksort work?")
    page.locator(".is-writing .prose h3").wait_for()
    assert findings(page) == []
    picture(page, tmp_path, "writing")
    page.evaluate("window.pause = 0")
    last_answer(page).locator(".thought summary").click()
    until(page, "document.querySelectorAll('.katex').length >= 3 && document.querySelector('.hljs-keyword')")
    page.evaluate("document.getElementById('conversation').scrollTop = 0")
    page.locator("#to-end").wait_for()
    is_tidy(page)
    picture(page, tmp_path, "answer")
    assert findings(page) == []
    script(page, "Let me look.", calls=[CALL])
    ask(page, "How is the weather?")
    picture(page, tmp_path, "call")
    assert findings(page) == []
    page.click("#export-button")
    assert findings(page) == []
    page.keyboard.press("Escape")
    for panel in ("history", "settings"):
        if not page.locator(f"#{panel}").is_visible():
            page.click(f"#{panel}-button")
        page.wait_for_timeout(250)  # it slides in
        is_tidy(page)
        picture(page, tmp_path, panel)
        assert findings(page) == []
        if page.locator("#shade").is_visible():
            page.keyboard.press("Escape")
            assert not page.locator(f"#{panel}").is_visible()


def test_tokens_without_a_finding(sized: Any, tmp_path: Path) -> None:
    page = sized
    opens = not page.locator("#settings").is_visible()
    if opens:
        page.click("#settings-button")
    page.fill("#max_tokens", "40")
    page.check("#probabilities")
    if opens:
        page.keyboard.press("Escape")
    answer = ask(page, "Tell me a story about a fox.")
    answer.locator(".token").nth(8).focus()
    picture(page, tmp_path, "tokens")
    is_tidy(page)
    assert findings(page) == []


def test_by_keyboard_alone(page: Any) -> None:
    """A question, its answer copied, asked again, edited, and another conversation, without a pointer."""
    script(page, "One answer.")
    until(page, "document.activeElement.id === 'prompt'")
    page.keyboard.type("A question")
    page.keyboard.press("Enter")
    last_answer(page)
    page.wait_for_timeout(300)  # the answer's buttons are put there anew once the conversation is kept
    is_copy = "document.activeElement.ariaLabel === 'Copy'"
    for _ in range(8):  # from the field by what lies between to the answer's buttons
        page.keyboard.press("Shift+Tab")
        if page.evaluate(is_copy):
            break
    until(page, is_copy)
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert page.evaluate("getComputedStyle(document.activeElement.parentElement).opacity") == "1"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # again
    until(page, "document.querySelector('.version')?.textContent === '2 of 2'")
    page.focus("#prompt")
    page.keyboard.press("ArrowUp")
    until(page, "document.activeElement.value === 'A question'")
    page.keyboard.press("Escape")
    until(page, "document.activeElement.ariaLabel === 'Edit'")
    page.keyboard.press("Control+k")
    until(page, "document.activeElement.id === 'search'")


def test_a_drawer_keeps_the_keyboard(open_page: Callable[..., Any]) -> None:
    """And gives it back to the button that opened it."""
    page = open_page(viewport={"width": 390, "height": 844})
    page.focus("#settings-button")
    page.keyboard.press("Enter")
    for _ in range(40):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.matches('body, #settings *')")
    page.keyboard.press("Escape")
    until(page, "document.activeElement.id === 'settings-button'")


def test_a_panel_stays_as_the_reader_left_it(page: Any) -> None:
    page.click("#settings .close")
    page.reload()
    assert not page.locator("#settings").is_visible()
    page.click("#settings-button")
    page.reload()
    assert page.locator("#settings").is_visible()


def test_copying_where_browsers_keep_their_clipboard_shut(open_page: Callable[..., Any]) -> None:
    """As for a page that came neither over https nor from this machine."""
    page = open_page()
    script(page, "Some words.")
    answer = ask(page, "Say some.")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined, configurable: true})")
    answer.get_by_label("Copy", exact=True).click()
    until(page, "document.getElementById('status').textContent === 'Copied.'")
    page.evaluate("delete navigator.clipboard")
    page.context.grant_permissions(["clipboard-read"])
    assert page.evaluate("navigator.clipboard.readText()") == "Some words."
