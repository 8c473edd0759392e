"""The page, in a real Chromium, with the model's own answers: what its user sees and does, without a network."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from page_driver import ask, copied, set_parameters, until
from server_process import ServerProcess, running_server, wait_for

from qwench.serve.http.page import FOLDER, PATHS

KEY = "a-key-of-the-page-0123456789"


def test_an_answer_is_that_of_the_api(page: Any, server: ServerProcess, client: Any) -> None:
    set_parameters(page, temperature="0", max_tokens="40")
    answer = ask(page, "Tell me a story about a fox.")
    messages = [{"role": "user", "content": "Tell me a story about a fox."}]
    expected = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=40)
    text = expected.choices[0].message.content
    assert copied(page, answer.get_by_label("Copy", exact=True)) == text
    assert answer.locator(".prose").last.inner_text().split() == text.split()
    assert f"{expected.usage.completion_tokens} tokens" in answer.locator(".note").inner_text()
    assert "longest length" in answer.locator(".note").inner_text()
    assert re.fullmatch(r"[\d.]+ tokens/s", page.inner_text("#answer-speed"))
    second = ask(page, "And then?")  # the conversation goes on: its beginning is in the cache
    assert "known from before" in second.locator(".note").inner_text()


def test_probabilities_by_mouse_and_keyboard(page: Any) -> None:
    set_parameters(page, max_tokens="12")
    page.check("#probabilities")
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
    text = "".join(tokens.all_inner_texts())
    answer.get_by_label("How likely each token was").click()
    assert not tokens.first.is_visible() and answer.locator(".prose").last.inner_text().split() == text.split()
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
    set_parameters(page, max_tokens="1900")
    page.check("#probabilities")
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


def test_a_refused_request_can_be_tried_again(browser: Any, server: ServerProcess) -> None:
    """Said in the server's words, below the question."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(server.url)
    set_parameters(page, seed="99999999999999999999999", max_tokens="8")
    answer = ask(page, "Hello?")
    assert "seed" in answer.locator(".error").inner_text()
    set_parameters(page, seed="5")
    answer.get_by_label("Try again").click()
    until(page, "document.querySelector('.assistant:last-child .note')?.textContent.includes('tokens')")
    assert page.locator("#messages > li").count() == 2
    assert page.locator("#messages .error").count() == 0
    page.close()


def test_models_come_and_go_in_the_menu(open_page: Callable[..., Any], server: ServerProcess) -> None:
    page = open_page()
    until(page, "document.getElementById('model').options.length === 2")
    assert page.locator("#model option").all_inner_texts() == ["tiny", "alias"]
    served = [{"id": "tiny", "state": "loaded", "max_model_len": 2048},
              {"id": "a/b", "state": "unloaded", "max_model_len": 512}]  # fmt: skip
    page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": served}))
    page.focus("#prompt")
    page.focus("#model")
    until(page, "document.getElementById('model').options[1].value === 'a/b'")
    assert page.locator("#model option").all_inner_texts() == ["tiny", "a/b, loaded when asked"]
    page.select_option("#model", "a/b")
    assert "512 tokens" in page.inner_text("#model-length")
    served[1]["state"] = "loading"
    page.focus("#prompt")
    page.focus("#model")
    until(page, "document.getElementById('model').options[1].textContent === 'a/b, being loaded'")
    assert page.input_value("#model") == "a/b"


def test_gauges_move(page: Any) -> None:
    until(page, "document.getElementById('cache').title.includes('blocks')")
    assert "0 running" in page.get_attribute("#batch", "aria-label")
    until(page, "document.getElementById('batch').getContext('2d').getImageData(0, 0, 600, 160).data.some((v) => v)")
    before = page.inner_text("#server-speed")
    ask(page, "Tell me a story about a dog.")
    until(page, f"document.getElementById('server-speed').textContent !== {before!r}")


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
        page.set_viewport_size({"width": 1440, "height": 900})
        page.goto(server.url)
        set_parameters(page, max_tokens="8")
        assert ask(page, "Hello.").locator(".prose").last.inner_text()
        context.close()


def test_files_are_sent_as_they_are(server: ServerProcess) -> None:
    """All but licences; compressed for those who take it; once for a browser that keeps them."""
    with server.client() as http:
        for path in PATHS:
            answer = http.get(path, headers={"accept-encoding": "identity"})
            file = FOLDER / (path.removeprefix("/ui/") if path != "/" else "index.html")
            assert answer.status_code == 200 and answer.content == file.read_bytes()
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert http.get(path).content == answer.content
            again = http.get(path, headers={"if-none-match": answer.headers["etag"]})
            assert again.status_code == 304 and not again.content
        for path in ("/ui/index.html", "/ui/../app.py", "/ui/%2e%2e/app.py", "/ui/none.js", "/ui/vendor/katex/LICENSE"):
            assert http.get(path).status_code == 404
    left_out = {file.name for file in FOLDER.rglob("*") if file.is_file()} - {Path(path).name for path in PATHS}
    assert left_out == {"index.html", "LICENSE", "LICENSE.txt", "LICENSE-MIT.txt"}


def test_little_is_loaded_before_it_is_needed(page: Any) -> None:
    """The first load is about 100 kB on the wire; code and formulas bring their libraries."""
    sizes = page.evaluate(
        "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
        ".filter((entry) => !/metrics|models/.test(entry.name)).map((entry) => [entry.name, entry.encodedBodySize])"
    )
    assert not [name for name, _ in sizes if "katex" in name or "highlight" in name]
    assert sum(size for _, size in sizes) < 110_000, sizes
