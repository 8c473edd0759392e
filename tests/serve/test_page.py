"""The page, in a real Chromium: what its user sees and does, with the mouse and without, and without a network."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import ServerProcess, running_server, wait_for

from qwench.serve.http.page import FOLDER, PATHS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
KEY = "a-key-of-the-page-0123456789"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the page's tests need pip install playwright")
    if CHROMIUM is None:
        pytest.skip("the page's tests need Chromium: apt install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: ServerProcess) -> Iterator[Any]:
    """A tab with the page in it; fails for anything that went wrong in its scripts or came from elsewhere."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on(
        "request",
        lambda request: None if request.url.startswith((server.url, "data:")) else faults.append(request.url),
    )
    page.set_default_timeout(60_000)
    page.goto(server.url)
    yield page
    context.close()
    assert not faults


def ask(page: Any, text: str) -> Any:
    """Sends a message by the keyboard; the answer's element once it is complete."""
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    answer = page.locator("#messages > li.assistant").last
    answer.locator(".note").wait_for()
    return answer


def until(page: Any, expression: str) -> None:
    """Waits for an expression to be true; Chromium's own way to do so needs the eval that the page forbids."""
    wait_for(lambda: page.evaluate(expression), every_s=0.1)


def test_an_answer_is_that_of_the_api(page: Any, server: ServerProcess, client: Any) -> None:
    page.fill("#temperature", "0")
    page.fill("#max_tokens", "40")
    answer = ask(page, "Tell me a story about a fox.")
    messages = [{"role": "user", "content": "Tell me a story about a fox."}]
    expected = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=40)
    assert answer.locator(".text").inner_text() == expected.choices[0].message.content
    assert f"{expected.usage.completion_tokens} tokens" in answer.locator(".note").inner_text()
    assert "longest length" in answer.locator(".note").inner_text()
    assert re.fullmatch(r"[\d.]+ tokens/s", page.inner_text("#answer-speed"))
    second = ask(page, "And then?")  # the conversation goes on: its beginning is in the cache
    assert "known from before" in second.locator(".note").inner_text()


def test_probabilities_by_mouse_and_keyboard(page: Any) -> None:
    page.fill("#max_tokens", "12")
    answer = ask(page, "Tell me a story about a hen.")
    tokens = answer.locator(".token")
    assert tokens.count() > 5
    tokens.nth(2).hover()
    assert page.locator("#token-card tr").count() >= 5
    assert page.locator("#token-card .chosen").count() == 1
    assert re.search(r"\d+\.\d %", page.inner_text("#token-card"))
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("[...document.querySelectorAll('.token')].indexOf(document.activeElement)") == 1
    page.keyboard.press("End")
    assert page.is_visible("#token-card")
    assert page.locator(".token[tabindex='0']").count() == 1  # one stop of the Tab key
    page.uncheck("#probabilities")
    assert ask(page, "Again.").locator(".token").count() == 0


STOP_AT_FIRST_TOKEN = """new MutationObserver((changes, observer) => {
  if (!document.querySelector('.assistant .token')) return;
  window.statusThen = document.getElementById('status').textContent;
  document.getElementById('stop').click();
  observer.disconnect();
}).observe(document.getElementById('messages'), {childList: true, subtree: true})"""


def _never_ends(route: Any) -> None:
    route.continue_(post_data=json.dumps(json.loads(route.request.post_data) | {"ignore_eos": True}))


def test_stopping(page: Any, server: ServerProcess) -> None:
    """The answer ends on the server too, what there is of it stays, and a new conversation begins empty."""
    page.fill("#max_tokens", "1900")
    page.route("**/v1/chat/completions", _never_ends)  # or a fast machine is done before the stop arrives
    page.evaluate(STOP_AT_FIRST_TOKEN)  # faster than a test can click
    before = server.metric('qwench_answers_total{reason="abort"}')
    answer = ask(page, "Tell me a story about a cow.")
    assert page.evaluate("window.statusThen") == "The answer is being written."
    assert answer.locator(".note").inner_text() == "Stopped."
    assert answer.locator(".token").count() >= 1
    assert page.is_enabled("#send")
    until(page, "document.getElementById('running').textContent === '0'")
    wait_for(lambda: server.metric('qwench_answers_total{reason="abort"}') == before + 1)
    page.click("#new-chat")
    assert page.locator("#messages > li").count() == 0


def test_a_refused_request_gives_the_message_back(browser: Any, server: ServerProcess) -> None:
    """Said in the server's words; the question stands in its field again."""
    page = browser.new_page()
    page.goto(server.url)
    page.fill("#max_tokens", "9999999")
    answer = ask(page, "Hello?")
    assert "maximum context length" in answer.locator(".error").inner_text()
    assert page.input_value("#prompt") == "Hello?"
    page.close()


def test_gauges_move(page: Any) -> None:
    until(page, "document.getElementById('cache').title.includes('blocks')")
    assert "0 running" in page.get_attribute("#batch", "aria-label")
    until(page, "document.getElementById('batch').getContext('2d').getImageData(0, 0, 600, 160).data.some((v) => v)")
    before = page.inner_text("#server-speed")
    ask(page, "Tell me a story about a dog.")
    until(page, f"document.getElementById('server-speed').textContent !== {before!r}")


def test_names_for_a_screen_reader(page: Any) -> None:
    """Every control has a name, in light and dark."""
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input, textarea, meter, canvas')].filter((e) =>
            !(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label') ||
              e.getAttribute('aria-labelledby'))).map((e) => e.id)"""
    )
    assert unnamed == []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(CONTRAST) >= 4.5


CONTRAST = """(() => {
  const parts = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (text) => parts(text).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => { for (; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (!colour.includes('rgba(0, 0, 0, 0)')) return colour; } };
  let least = 21;
  for (const e of document.querySelectorAll('h1, h2, p, label, dt, dd, button, #prompt-help, textarea')) {
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    least = Math.min(least, (a + 0.05) / (b + 0.05));
  }
  return least;
})()"""


def test_the_page_asks_for_the_key(artifact: Path, browser: Any, tmp_path: Path) -> None:
    """As the password of any user, so that a browser asks its user for it; and is closed without it."""
    (tmp_path / "keys").write_text(f"{KEY}\n")
    with running_server(artifact, "--threads", "1", "--api-key-file", str(tmp_path / "keys")) as server:
        refused = httpx.get(server.url)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Basic")
        wrong = base64.b64encode(b"me:not-the-key").decode()
        assert httpx.get(server.url, headers={"authorization": f"Basic {wrong}"}).status_code == 401
        assert httpx.get(server.url, headers={"authorization": "Basic !!"}).status_code == 401
        context = browser.new_context(http_credentials={"username": "me", "password": KEY})
        page = context.new_page()
        page.goto(server.url)
        page.fill("#max_tokens", "8")
        assert ask(page, "Hello.").locator(".text").inner_text()
        context.close()


def test_files_are_sent_as_they_are(server: ServerProcess) -> None:
    for path in PATHS:
        answer = httpx.get(server.url + path)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert {f"/ui/{file.name}" for file in FOLDER.iterdir()} - {"/ui/index.html"} == set(PATHS) - {"/"}
    for path in ("/ui/index.html", "/ui/../app.py", "/ui/%2e%2e/app.py", "/ui/none.js"):
        assert httpx.get(server.url + path).status_code == 404


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 420])
def test_pictures(page: Any, tmp_path: Path, scheme: str, width: int) -> None:
    """Kept in the folder that QWENCH_SCREENSHOTS names, for people to look at."""
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    answer = ask(page, "Tell me a story about a fox.")
    answer.locator(".token").nth(8).hover()
    folder = os.environ.get("QWENCH_SCREENSHOTS", tmp_path)
    page.screenshot(path=f"{folder}/page-{scheme}-{width}.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
