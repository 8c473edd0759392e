"""Conversations: edited, asked again, branched, stopped, kept, found, exported and brought back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from page_driver import ask, last_answer, script, send, until


def texts(page: Any) -> list[str]:
    """What stands in the conversation."""
    found: list[str] = page.locator("#messages > li > .text").all_inner_texts()
    return found


def sent(page: Any) -> list[dict[str, Any]]:
    """The messages of the last request."""
    messages: list[dict[str, Any]] = page.evaluate("window.sent.messages")
    return messages


def test_other_versions_stay(page: Any) -> None:
    """Of answers and of questions, each with what follows it; the API is told of the branch that is shown."""
    script(page, "First.")
    ask(page, "One?")
    script(page, "Second.")
    page.get_by_label("Answer again").click()
    last_answer(page)
    assert page.locator(".version").inner_text() == "2 of 2"
    script(page, "After the second.")
    ask(page, "Go on.")
    assert [message["content"] for message in sent(page)] == ["One?", "Second.", "Go on."]
    page.get_by_label("Earlier version").click()
    assert texts(page) == ["One?", "First."]
    page.get_by_label("Later version").click()
    assert texts(page) == ["One?", "Second.", "Go on.", "After the second."]
    script(page, "To the other question.")
    page.get_by_label("Edit").first.click()
    page.get_by_label("Your message").fill("Two?")
    page.get_by_label("Your message").press("Enter")
    last_answer(page)
    assert [message["content"] for message in sent(page)] == ["Two?"]
    assert texts(page) == ["Two?", "To the other question."]
    page.get_by_label("Earlier version").click()
    assert texts(page) == ["One?", "Second.", "Go on.", "After the second."]


def test_editing_can_be_left(page: Any) -> None:
    script(page, "An answer.")
    ask(page, "A question")
    page.get_by_label("Edit").click()
    page.get_by_label("Your message").fill("Something else")
    page.get_by_text("Cancel").click()
    assert texts(page) == ["A question", "An answer."]
    assert page.locator("#conversations .entry").count() == 1


def test_going_on_elsewhere(page: Any) -> None:
    """The new conversation ends with the answer; the old one stays as it was."""
    script(page, "First.")
    ask(page, "One?")
    ask(page, "Two?")
    page.get_by_label("Go on from here in a new chat").first.click()
    assert texts(page) == ["One?", "First."]
    ask(page, "Three?")
    assert [message["content"] for message in sent(page)] == ["One?", "First.", "Three?"]
    page.locator("#conversations .entry").nth(1).click()
    assert texts(page) == ["One?", "First.", "Two?", "First."]


def test_an_answer_goes_on_while_another_conversation_is_shown(page: Any) -> None:
    script(page, "word " * 60, pause_ms=20)
    send(page, "The long one")
    page.locator(".assistant .prose p").wait_for()
    page.click("#new-chat")
    assert page.locator("#messages > li").count() == 0 and page.is_visible("#send")
    script(page, "Short.")
    ask(page, "The short one")
    page.locator("#conversations .entry", has_text="The long one").click()
    last_answer(page)
    assert texts(page) == ["The long one", ("word " * 60).strip()]


def test_a_stop_keeps_what_came(page: Any) -> None:
    script(page, "word " * 500, pause_ms=20)
    send(page, "Go on for ever.")
    page.locator(".assistant .prose p").wait_for()
    page.keyboard.press("Escape")
    answer = last_answer(page)
    assert answer.locator(".note").inner_text() == "Stopped."
    assert answer.locator(".prose").last.inner_text().startswith("word")
    script(page, "Fine.")
    ask(page, "And now?")
    assert sent(page)[1]["content"].startswith("word") and sent(page)[2]["content"] == "And now?"


def test_an_error_is_kept_and_not_sent(page: Any) -> None:
    script(page, error="the engine fell over")
    answer = ask(page, "One?")
    assert answer.locator(".error").inner_text() == "the engine fell over"
    script(page, "Fine.")
    ask(page, "Two?")
    assert [message["content"] for message in sent(page)] == ["One?", "Two?"]


def test_kept_over_a_reload(page: Any) -> None:
    """With the system prompt and all versions; found by words of any message; renamed; deleted, and that undone."""
    page.fill("#system", "Be brief.")
    script(page, "First, about **whales**.")
    ask(page, "One?")
    page.get_by_label("Answer again").click()
    last_answer(page)
    page.click("#new-chat")
    script(page, "Other.")
    ask(page, "Another matter")
    page.reload()
    entries = page.locator("#conversations .entry")
    until(page, "document.querySelectorAll('#conversations .entry').length === 2")
    page.fill("#search", "WHALES")
    assert entries.all_inner_texts() == ["One?"]
    entries.first.click()
    assert page.locator(".version").inner_text() == "2 of 2"
    assert page.locator(".prose strong").inner_text() == "whales"
    assert page.input_value("#system") == "Be brief."
    entries.first.focus()
    page.get_by_label("Rename One?").click()
    page.keyboard.type("About whales")
    page.keyboard.press("Enter")
    page.fill("#search", "")
    assert sorted(entries.all_inner_texts()) == ["About whales", "Another matter"]
    entries.filter(has_text="About whales").focus()
    page.get_by_label("Delete About whales").click()
    assert entries.all_inner_texts() == ["Another matter"] and page.locator("#messages > li").count() == 0
    page.get_by_text("Undo").click()
    assert sorted(entries.all_inner_texts()) == ["About whales", "Another matter"]
    entries.filter(has_text="Another matter").focus()
    page.get_by_label("Delete Another matter").click()
    page.reload()
    until(page, "document.querySelectorAll('#conversations .entry').length === 1")
    assert entries.all_inner_texts() == ["About whales"]


def test_another_tab_sees_it(page: Any) -> None:
    other = page.context.new_page()
    other.goto(page.url)
    script(page, "Yes.")
    ask(page, "Do you see this?")
    other.locator("#conversations .entry", has_text="Do you see this?").wait_for()


def exported(page: Any, button: str) -> str:
    with page.expect_download() as download:
        page.click(button)
    return Path(download.value.path()).read_text()


def test_exported_and_brought_back(page: Any, open_page: Callable[..., Any], tmp_path: Path) -> None:
    """JSON says all and comes back as it was, in another browser; Markdown is for people."""
    page.fill("#system", "Be brief.")
    script(page, "First, with `code`.", thought="Hm.\nWell.")
    ask(page, "One?")
    script(page, "Second.")
    page.get_by_label("Answer again").click()
    last_answer(page)
    page.get_by_label("Earlier version").click()
    page.click("#export-button")
    told = "## System\n\nBe brief.\n\n## Question\n\nOne?\n\n## Answer\n\n> Hm.\n> Well.\n\nFirst, with `code`.\n"
    assert exported(page, "#export-markdown") == f"# One?\n\n{told}"
    page.click("#export-button")
    one = json.loads(exported(page, "#export-json"))
    everything = exported(page, "#export-all")
    assert one["format"] == "qwench-conversations" and len(json.loads(everything)["conversations"]) == 1
    (tmp_path / "all.json").write_text(everything)
    other = open_page()
    other.set_input_files("#import-chooser", tmp_path / "all.json")
    other.locator("#conversations .entry").click()
    assert texts(other) == ["One?", "First, with code."]
    assert other.locator(".version").inner_text() == "1 of 2"
    other.locator(".thought summary").click()
    assert other.locator(".thought .text").inner_text() == "Hm.\nWell."
    assert other.input_value("#system") == "Be brief."
    again = json.loads(exported(other, "#export-all"))["conversations"][0]
    [before] = json.loads(everything)["conversations"]
    strip = ("id", "parent")
    plain = [[{k: v for k, v in m.items() if k not in strip} for m in c["messages"]] for c in (before, again)]
    assert plain[0] == plain[1]


FORMAT = '{"format": "qwench-conversations", "conversations": '
BAD_FILES = {
    "words": "not json",
    "other": '{"format": "something"}',
    "no messages": FORMAT + "[{}]}",
    "a role": FORMAT + '[{"messages": [{"role": "x", "parent": null}]}]}',
    "an orphan": FORMAT + '[{"messages": [{"role": "user", "parent": "z"}]}]}',
    "its own child": FORMAT + '[{"messages": [{"id": "a", "role": "user", "parent": "a"}]}]}',
}


def test_a_bad_file_is_refused_whole(page: Any, tmp_path: Path) -> None:
    for name, text in BAD_FILES.items():
        (tmp_path / name).write_text(text)
        page.set_input_files("#import-chooser", tmp_path / name)
        until(page, f"document.getElementById('notice').textContent.includes('Nothing was brought in from {name}')")
    assert page.locator("#conversations .entry").count() == 0


def test_odd_values_in_a_file_do_no_harm(page: Any, tmp_path: Path) -> None:
    """Everything that isn't of its kind is left out, and HTML is text there as everywhere."""
    call = {"id": 3, "function": {"name": ["x"], "arguments": None}}
    message = {
        "id": "a",
        "parent": None,
        "role": "assistant",
        "content": {"x": 1},
        "tool_calls": [call, None],
        "files": 3,
    }
    odd = {"title": "<img src=x onerror='window.hit = 1'>", "messages": [message], "leaf": "nowhere", "updated": "soon"}
    (tmp_path / "odd.json").write_text(json.dumps({"format": "qwench-conversations", "conversations": [odd]}))
    page.set_input_files("#import-chooser", tmp_path / "odd.json")
    page.locator("#conversations .entry").click()
    assert page.locator("#messages > li").count() == 1
    assert page.locator("#conversations .entry").inner_text() == odd["title"]
    assert page.evaluate("window.hit") is None
