"""Prompt files: what they may say, what they may reach, and the samples that come with qwench."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from text_fixtures import qwen2_tokenizer

from qwench.errors import RequestError
from qwench.text import prompt_file
from qwench.text.prompt_file import UserPrompt, read_prompts, sample_file


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENCH_CACHE", str(tmp_path / "cache"))


def write(folder: Path, *entries: Any) -> Path:
    path = folder / "prompts.json"
    path.write_text(json.dumps(entries))
    return path


def test_a_prompt_alone(tmp_path: Path) -> None:
    [prompt] = read_prompts(write(tmp_path, {"prompt": "Why?"}))
    assert prompt == UserPrompt("Why?")
    assert prompt.as_instruction() == prompt.as_text() == "Why?"


def test_a_context_goes_before_the_prompt(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books/tale.txt").write_text("Il était une fois", encoding="utf-8")
    entries = [{"prompt": "Who?", "context": "books/tale.txt"} | cut for cut in ({}, {"max_length": 8})]
    whole, start = read_prompts(write(tmp_path, *entries))
    assert whole.as_instruction() == "```Il était une fois```\n\nWho?"
    assert whole.as_text() == "Il était une fois\n\nWho?"
    assert start.as_text() == "Il était\n\nWho?"


BAD = {
    "not an object": "Why?",
    "no prompt": {"context": "a.txt"},
    "an empty prompt": {"prompt": ""},
    "a prompt that is no text": {"prompt": 3},
    "an unknown key": {"prompt": "x", "temprature": 1},
    "a context that is no text": {"prompt": "x", "context": 3},
    "an absent context": {"prompt": "x", "context": "absent.txt"},
    "a folder as context": {"prompt": "x", "context": "."},
    "a context above": {"prompt": "x", "context": "../outside.txt"},
    "an absolute context": {"prompt": "x", "context": "/etc/hostname"},
    "a context behind a link": {"prompt": "x", "context": "link.txt"},
    "a context that is no UTF-8": {"prompt": "x", "context": "binary"},
    "a context too large": {"prompt": "x", "context": "large.txt"},
    "a length of nothing": {"prompt": "x", "max_length": 5},
    "a length of zero": {"prompt": "x", "context": "small.txt", "max_length": 0},
    "a length that is true": {"prompt": "x", "context": "small.txt", "max_length": True},
    "a file URL": {"prompt": "x", "context": "file:///etc/hostname"},
    "a URL without leave": {"prompt": "x", "context": "http://127.0.0.1:9/a"},
}


@pytest.mark.parametrize("entry", BAD.values(), ids=BAD.keys())
def test_what_an_entry_may_not_say(tmp_path: Path, entry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "outside.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    (folder / "binary").write_bytes(b"\xff\xfe")
    (folder / "small.txt").write_text("small")
    (folder / "large.txt").write_text("0123456789")
    monkeypatch.setattr(prompt_file, "MAX_CONTEXT_BYTES", 9)
    with pytest.raises(RequestError, match=r"prompts\.json: entry 1"):
        read_prompts(write(folder, {"prompt": "fine", "context": "small.txt"}, entry))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"prompt": "x"}', "3", "[" * 100_000])
def test_what_a_file_may_not_hold(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(text)
    with pytest.raises(RequestError, match=r"prompts\.json"):
        read_prompts(path)
    with pytest.raises(RequestError, match="absent"):
        read_prompts(tmp_path / "absent.json")


class Book(http.server.BaseHTTPRequestHandler):
    """Serves one text, and counts how often it is asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200 if self.path.startswith("/book") else 404)
        self.end_headers()
        self.wfile.write("Call me Ishmaël.".encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Book, "asked", [], raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Book) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_url_is_fetched_once_and_only_with_leave(tmp_path: Path, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, {"prompt": "Who?", "context": f"{site}/book", "max_length": 15})
    with pytest.raises(RequestError, match="--fetch"):
        read_prompts(path)
    assert Book.asked == []
    for fetch in (True, True, False):
        assert read_prompts(path, fetch=fetch)[0].context == "Call me Ishmaël"
    assert Book.asked == ["/book"]
    with pytest.raises(RequestError, match="404"):
        read_prompts(write(tmp_path, {"prompt": "Who?", "context": f"{site}/absent"}), fetch=True)
    monkeypatch.setattr(prompt_file, "MAX_CONTEXT_BYTES", 9)
    with pytest.raises(RequestError, match="more than"):
        read_prompts(write(tmp_path, {"prompt": "Who?", "context": f"{site}/book?"}), fetch=True)


@pytest.mark.parametrize("style", ["instruct", "general"])
def test_the_samples_are_32_of_about_128_tokens(style: str) -> None:
    texts = [prompt.as_text() for prompt in read_prompts(sample_file(style))]
    assert len(texts) == len(set(texts)) == 32
    lengths = [len(qwen2_tokenizer().encode(text)) for text in texts]
    assert min(lengths) > 100 and max(lengths) < 150
