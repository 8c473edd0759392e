"""What an answer may consist of beside its text: code, formulas, thoughts, calls; and what a question may: files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from page_driver import ask, copied, last_answer, script, send, until
from server_process import ServerProcess, wait_for
from tool_checkpoint import NOW, WEATHER

ANSWER = (Path(__file__).parent / "answer.md").read_text()


def test_markdown(page: Any) -> None:
    """Headings stand below the page's own; lists, tables, quotes and links are what they are."""
    script(page, ANSWER, size=5)
    answer = ask(page, "How does quicksort work?").locator(".prose").last
    assert answer.locator("h3").inner_text() == "Sorting in place"
    assert answer.locator("h4").inner_text() == "How they compare"  # h3 in the text, where nothing was h2
    assert answer.locator("ol > li").count() == 3 and answer.locator("ol ul > li").count() == 2
    assert answer.locator("td.right").first.inner_text() == "1.39 n log n"
    assert answer.locator("td.center").count() == 3
    assert answer.locator("a").get_attribute("href") == "https://example.org/hoare"
    assert "It costs $5 or $10, says <b>nobody</b>." in answer.inner_text()


def test_code_is_coloured_and_copied(page: Any) -> None:
    """Without its fence; in a language that nobody knows, in one colour."""
    code = 'def f():\n    return "<b>&amp;</b>"\n'
    script(page, f"Python:\n\n```python\n{code}```\n\nOther:\n\n~~~~klingon\n```\nqapla\n~~~~\n\n    indented\n")
    answer = ask(page, "Show me code.")
    answer.locator(".hljs-keyword").first.wait_for()
    assert answer.locator(".code-head > span").all_inner_texts() == ["python", "klingon", "text"]
    assert copied(page, answer.get_by_label("Copy code").first) == code
    assert answer.locator("code.language-klingon span").count() == 0
    assert answer.locator("code.language-klingon").inner_text() == "```\nqapla\n"


def test_code_is_copied_once_it_is_whole(page: Any) -> None:
    script(page, "```python\n" + "x = 1\n" * 60 + "```", size=6, pause_ms=25)
    send(page, "Write.")
    page.locator(".is-writing .code").wait_for()
    assert page.get_by_label("Copy code").count() == 0
    page.evaluate("window.pause = 0")
    assert copied(page, last_answer(page).get_by_label("Copy code")) == "x = 1\n" * 60


FORMULAS = {
    "$x^2$": 1,
    "\\(x^2\\) and \\[y^2\\]": 2,
    "$$x^2$$": 1,
    "a $$x^2$$ b": 1,
    "$$\nx^2\n$$": 1,
    "\\[\n\\begin{aligned} a &= b \\\\ c &= d \\end{aligned}\n\\]": 1,
    "- item $a_1$, $b_1$": 2,
    "| $a$ | b |\n|---|---|\n| $c$ | d |": 2,
    "It costs $5 and $10.": 0,
    "From $5 to $7, or $ 3 more": 0,
    "$a \\$ b$": 1,
    "an escaped \\$x\\$": 0,
    "`$x$`": 0,
    "```\n$x$\n```": 0,
    "$\\nosuchcommand{x}$": 0,
    "$$\nnever ends": 0,
}


def test_formulas(page: Any) -> None:
    """In all four notations; money is none, and what KaTeX doesn't know stays as it was written."""
    for text, count in FORMULAS.items():
        script(page, text, size=3)
        answer = ask(page, "A formula.")
        if count:
            answer.locator(".katex").first.wait_for()
        assert answer.locator(".katex").count() == count, text
        assert answer.locator("math").count() == count, text  # for screen readers
    assert answer.locator("code").inner_text() == "never ends"


def test_a_selection_stays_while_an_answer_grows(page: Any) -> None:
    """What stands already isn't drawn anew."""
    script(page, "The first paragraph.\n\n" + "More and more. " * 60, size=8, pause_ms=15)
    send(page, "Write.")
    page.locator(".is-writing .prose p").nth(1).wait_for()
    page.evaluate("window.first = document.querySelector('.prose p'); getSelection().selectAllChildren(window.first)")
    page.evaluate("window.pause = 0")
    last_answer(page)
    assert page.evaluate("getSelection().toString()") == "The first paragraph."
    assert page.evaluate("window.first === document.querySelector('.prose p')")


def test_thoughts_are_folded(page: Any) -> None:
    """And told apart from the answer: not copied with it, sent back beside it; unfolded they grow like an answer."""
    script(page, "Four.", thought="Two and two. " * 40, size=10, pause_ms=15)
    send(page, "2 + 2?")
    thought = page.locator(".thought")
    thought.wait_for()
    assert thought.locator("summary").inner_text().startswith("Thinking") and not thought.locator(".text").is_visible()
    thought.locator("summary").click()
    thought.locator("p", has_text="Two and two").wait_for()
    page.evaluate("window.pause = 0")
    answer = last_answer(page)
    assert answer.locator("summary").inner_text().startswith("Thought for")
    assert thought.locator(".text").inner_text() == ("Two and two. " * 40).strip()
    assert copied(page, answer.get_by_label("Copy", exact=True)) == "Four."
    ask(page, "And 3 + 3?")
    sent_back = {"role": "assistant", "content": "Four.", "reasoning_content": "Two and two. " * 40}
    assert page.evaluate("window.sent.messages[1]") == sent_back


def test_an_end_while_thinking_is_said(page: Any) -> None:
    script(page, thought="Hm. " * 20, finish="length")
    answer = ask(page, "2 + 2?")
    assert "longest length while it was thinking" in answer.locator(".note").inner_text()


def test_thinking_can_be_chosen(page: Any) -> None:
    """As the templates of models that can do both want it."""
    script(page, "Yes.")
    ask(page, "One?")
    assert "chat_template_kwargs" not in page.evaluate("window.sent")
    page.select_option("#thinking", "off")
    ask(page, "Two?")
    assert page.evaluate("window.sent.chat_template_kwargs") == {"enable_thinking": False}


def test_a_call_trickles_in_and_is_answered(page: Any) -> None:
    """Two calls in parts that come mixed; then their results go back with their ids."""
    parts: list[dict[str, Any]] = [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"city": '}},
        {"index": 1, "id": "b", "type": "function", "function": {"name": "now", "arguments": "{}"}},
        {"index": 0, "function": {"arguments": '"Paris"}'}},
    ]
    page.locator("#parameters summary").click()
    page.fill("#tools", json.dumps([WEATHER, NOW]))
    script(page, "Let me look.", calls=parts)
    answer = ask(page, "How is the weather?")
    assert page.evaluate("window.sent.tools.length") == 2
    assert answer.locator(".call-name").all_inner_texts() == ["weather", "now"]
    assert json.loads(answer.locator(".call pre").first.inner_text()) == {"city": "Paris"}
    page.get_by_label("Result of weather").fill("Sunny.")
    page.get_by_label("Result of now").fill("Noon.")
    script(page, "Sunny at noon.")
    page.get_by_text("Send results").click()
    page.locator(".prose", has_text="Sunny at noon.").wait_for()
    last_answer(page)
    messages = page.evaluate("window.sent.messages")
    called = [{"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in
              (("a", "weather", '{"city": "Paris"}'), ("b", "now", "{}"))]  # fmt: skip
    assert messages[1:] == [
        {"role": "assistant", "content": "Let me look.", "tool_calls": called},
        {"role": "tool", "tool_call_id": "a", "content": "Sunny."},
        {"role": "tool", "tool_call_id": "b", "content": "Noon."},
    ]
    assert page.locator("#messages > li").count() == 3
    assert page.locator(".call pre").all_inner_texts()[1] == "Sunny."


@pytest.mark.parametrize("text", ["nonsense", '{"type": "function"}'])
def test_tools_that_are_none_are_not_sent(page: Any, text: str) -> None:
    page.locator("#parameters summary").click()
    page.fill("#tools", text)
    send(page, "Hello.")
    assert page.evaluate("document.getElementById('tools').validationMessage")
    assert page.locator("#messages > li").count() == 0 and page.input_value("#prompt") == "Hello."


def test_a_wrong_parameter_is_shown_where_it_is(open_page: Callable[..., Any]) -> None:
    """On a telephone, where the settings are behind a button."""
    page = open_page(viewport={"width": 390, "height": 844})
    page.click("#settings-button")
    page.fill("#temperature", "3")
    page.keyboard.press("Escape")
    send(page, "Hello.")
    assert page.locator("#temperature").is_visible() and page.locator("#messages > li").count() == 0
    until(page, "document.activeElement.id === 'temperature'")


def test_tools_of_the_real_server(open_page: Callable[..., Any], tool_server: ServerProcess) -> None:
    """A model whose template knows tools is told of them, and takes the results."""
    page = open_page(tool_server.url)
    page.locator("#parameters summary").click()
    page.fill("#tools", json.dumps([WEATHER]))
    page.fill("#max_tokens", "60")
    page.route("**/v1/chat/completions", _must_call)
    answer = ask(page, "How is the weather in Paris?")
    assert answer.locator(".call-name").first.inner_text() == "weather"
    assert json.loads(answer.locator(".call pre").first.inner_text())["city"] in ("Paris", "London")
    page.unroute("**/v1/chat/completions")
    page.get_by_label("Result of weather").first.fill("Sunny.")
    page.get_by_role("button", name="Send result").click()
    until(page, "document.querySelectorAll('#messages > li').length === 3")
    assert last_answer(page).locator(".error").count() == 0


def _must_call(route: Any) -> None:
    route.continue_(post_data=json.dumps(json.loads(route.request.post_data) | {"tool_choice": "required"}))


def test_files_come_before_the_message(page: Any, tmp_path: Path) -> None:
    """Each in a fence longer than any in it; chosen here, dropped and pasted below."""
    (tmp_path / "notes.md").write_text("# Notes\n```\ncode\n```\n")
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    page.set_input_files("#file-chooser", [tmp_path / "notes.md", tmp_path / "data.csv"])
    page.get_by_label("Remove data.csv").click()
    script(page, "Read.")
    ask(page, "What does it say?")
    [message] = page.evaluate("window.sent.messages")
    assert message["content"] == "notes.md:\n````\n# Notes\n```\ncode\n```\n\n````\n\nWhat does it say?"
    page.locator(".user .file summary").click()
    assert page.locator(".user .file pre").inner_text().startswith("# Notes")
    assert page.locator(".user > .text").inner_text() == "What does it say?"
    page.get_by_label("Edit").click()
    page.get_by_label("Your message").fill("Sum it up.")
    page.get_by_label("Your message").press("Enter")
    last_answer(page)
    assert page.evaluate("window.sent.messages[0].content").endswith("````\n\nSum it up.")


# bytes: a list of them, or how many.
DROP = """([kind, name, bytes]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name));
  const target = document.getElementById("prompt");
  const options = { bubbles: true, cancelable: true };
  if (kind === "paste") target.dispatchEvent(new ClipboardEvent("paste", { ...options, clipboardData: transfer }));
  else for (const type of ["dragenter", "dragover", "drop"]) {
    target.dispatchEvent(new DragEvent(type, { ...options, dataTransfer: transfer }));
    if (type === "dragover") window.wasMarked = document.body.classList.contains("is-dropping");
  }
}"""


def test_files_dropped_and_pasted(page: Any) -> None:
    """Text is taken, and nothing else is."""
    page.evaluate(DROP, ["drop", "words.txt", list("grüße".encode())])
    assert page.evaluate("window.wasMarked && !document.body.classList.contains('is-dropping')")
    page.evaluate(DROP, ["paste", "more.txt", list(b"more")])
    until(page, "document.querySelectorAll('#files li').length === 2")
    for name, content, why in (
        ("picture.png", list(b"\x89PNG\x00\xff"), "isn't text in UTF-8"),
        ("zeros.bin", list(b"a\x00b"), "isn't text"),
        ("large.txt", (2 << 20) + 1, "larger than 2 MiB"),
    ):
        page.evaluate(DROP, ["drop", name, content])
        wait_for(lambda name=name, why=why: f"{name} {why}" in page.inner_text("#notice").replace(" is ", " "))
    assert page.locator("#files li").count() == 2
    script(page, "Read.")
    page.press("#prompt", "Enter")  # files alone are a message as well
    last_answer(page)
    assert (
        page.evaluate("window.sent.messages[0].content") == "words.txt:\n```\ngrüße\n```\n\nmore.txt:\n```\nmore\n```"
    )


def test_models_and_parameters(page: Any) -> None:
    """The menu is the server's; a conversation keeps its model, the browser the parameters."""
    until(page, "document.getElementById('model-length').textContent.startsWith('2,048 tokens')")
    assert page.locator("#model option").all_inner_texts() == ["tiny", "alias"]
    page.select_option("#model", "alias")
    page.fill("#temperature", "0.5")
    page.fill("#seed", "7")
    script(page, "Yes.")
    ask(page, "Which model?")
    body = page.evaluate("window.sent")
    assert (body["model"], body["temperature"], body["seed"], body["max_tokens"]) == ("alias", 0.5, 7, 1024)
    assert "top_p" not in body and "tools" not in body and "logprobs" not in body
    page.reload()
    assert page.input_value("#temperature") == "0.5"
    page.locator("#conversations .entry").click()
    until(page, "document.getElementById('model').value === 'alias'")


def test_system_prompts_are_kept(page: Any) -> None:
    page.fill("#system", "You tell stories.")
    page.click("#keep-prompt")
    script(page, "Yes.")
    ask(page, "A story?")
    assert page.evaluate("window.sent.messages[0]") == {"role": "system", "content": "You tell stories."}
    page.click("#new-chat")
    page.fill("#system", "Be brief.")
    page.click("#keep-prompt")
    page.reload()
    page.select_option("#prompts", label="You tell stories.")
    assert page.input_value("#system") == "You tell stories."
    page.click("#forget-prompt")
    assert page.locator("#prompts option").all_inner_texts() == ["Kept prompts", "Be brief."]
