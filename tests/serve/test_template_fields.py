"""What requests tell a chat template that reads it: whether and how much to think, and what was thought before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import MODEL, running_server

from qwench import QwenchConfig, compile_checkpoint

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]({{ m.reasoning_content }}){{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}plain{% else %}thinking{% endif %}"
    "{{ reasoning_effort }}{{ secret }}"
)
USER = {"role": "user", "content": "Hi"}


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("thinking")
    checkpoint = Path(shutil.copytree(MODEL, folder / "checkpoint"))
    path = checkpoint / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    compile_checkpoint(checkpoint, folder / "model", QwenchConfig(weights="int8"))
    with running_server(folder / "model", "--threads", "1") as server, server.client() as http:
        yield http


def prompt_of(http: httpx.Client, **fields: Any) -> str:
    """The text that the template made of a chat."""
    answer = http.post(
        "/v1/chat/completions", json={"messages": [USER], "max_tokens": 1, "prompt_logprobs": 0, **fields}
    )
    assert answer.status_code == 200 and "x-qwench-ignored" not in answer.headers, answer.text
    first, *entries = answer.json()["prompt_logprobs"]
    assert first is None
    return "[" + "".join(next(iter(entry.values()))["decoded_token"] for entry in entries)


@pytest.mark.parametrize(
    ("wish", "end"),
    [
        ({}, "thinking"), ({"enable_thinking": False}, "plain"), ({"enable_thinking": "false"}, "plain"),
        ({"enable_thinking": True}, "thinking"), ({"chat_template_kwargs": {"enable_thinking": False}}, "plain"),
        ({"chat_template_kwargs": {"enable_thinking": "false", "reasoning_effort": None}}, "plain"),
        ({"thinking": {"type": "disabled"}}, "plain"), ({"thinking": {"type": "enabled"}}, "thinking"),
        ({"think": False}, "plain"), ({"reasoning_effort": "none"}, "plain"),
        ({"reasoning_effort": "low"}, "thinkinglow"),
        ({"reasoning": {"effort": "high"}}, "thinkinghigh"), ({"reasoning": {"enabled": False}}, "plain"),
        ({"reasoning": "none"}, "plain"), ({"reasoning_effort": "auto"}, "thinking"),
        ({"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": True}}, "thinking"),
    ],
)  # fmt: skip
def test_how_much_to_think(http: httpx.Client, wish: dict[str, Any], end: str) -> None:
    if len(wish) < 2:
        assert prompt_of(http, **wish) == f"[user]()Hi[assistant]{end}"
    else:  # the two contradict each other: chat_template_kwargs goes first, and the other is named
        answer = http.post("/v1/chat/completions", json={"messages": [USER], "max_tokens": 1, **wish})
        assert answer.headers["x-qwench-ignored"] == "enable_thinking"


def test_the_same_in_responses(http: httpx.Client) -> None:
    plain = {"chat_template_kwargs": {"enable_thinking": False}}
    count = http.post("/tokenize", json={"messages": [USER], **plain}).json()["count"]
    assert count != http.post("/tokenize", json={"messages": [USER]}).json()["count"]
    for wish in ({"reasoning": {"effort": "none"}}, {"enable_thinking": False}, plain):
        answer = http.post("/v1/responses", json={"input": [USER], "max_output_tokens": 1, **wish}).json()
        assert answer["usage"]["input_tokens"] == count


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking", "thinking_blocks", "part"])
def test_thoughts_of_earlier_turns(http: httpx.Client, name: str) -> None:
    turn: dict[str, Any] = {"role": "assistant", "content": "Hello"}
    block = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
    if name == "part":
        turn["content"] = [block, {"type": "text", "text": "Hello"}]
    else:
        turn[name] = [block] if name == "thinking_blocks" else "Hm."
    prompt = prompt_of(http, messages=[USER, turn, {**USER, "reasoning": "not a user's"}])
    assert prompt == "[user]()Hi[assistant](Hm.)Hello[user]()Hi[assistant]thinking"


def test_what_a_request_may_not_set(http: httpx.Client) -> None:
    for name in ("secret", "messages", "documents", "_x", "eos_token"):
        answer = http.post("/v1/chat/completions", json={"messages": [USER], "chat_template_kwargs": {name: "x"}})
        assert answer.status_code == 400 and name in answer.json()["error"]["message"]
    answer = http.post(
        "/v1/chat/completions", json={"messages": [USER], "max_tokens": 1, "add_generation_prompt": False}
    )
    assert answer.status_code == 200
