"""The events of /v1/messages add up to the whole message, however the answer was cut."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("fastapi", reason='the server needs pip install "qwench[serve]"')

from made_pieces import HERE, NOW, pieces, thinking, thoughts_and_texts, ways_to_say

from qwench.serve.answers import Answers
from qwench.serve.anthropic import messages as module
from qwench.serve.anthropic.errors import AnthropicErrors
from qwench.serve.anthropic.messages import MessageReply
from qwench.serve.failures import ApiError
from qwench.serve.processes.engine_client import Piece
from qwench.serve.protocol.anthropic.messages import MessagesRequest
from qwench.serve.protocol.anthropic.replies import Message, MessageError
from qwench.text.tool_calls import ToolCallParser


class MadeGeneration:
    """Gives one piece at a time, each once it has come, then fails if it is to."""

    def __init__(self, made: Sequence[Piece], failure: ApiError | None = None, wait_s: float = 0.0) -> None:
        self._made, self._failure, self._wait_s = list(made), failure, wait_s
        self._next_s = time.monotonic() + wait_s

    @property
    def is_finished(self) -> bool:
        return not self._made and self._failure is None

    async def take(self) -> list[Piece]:
        await asyncio.sleep(self._next_s - time.monotonic())
        self._next_s = time.monotonic() + self._wait_s
        if not self._made and self._failure is not None:
            raise self._failure
        return [self._made.pop(0)]


def reply(is_whole: bool = False, **fields: Any) -> MessageReply:
    turn = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1000}
    body = MessagesRequest.model_validate({**turn, **fields})
    return MessageReply("tiny", body, Answers([1], 1, lambda: ToolCallParser(["now", "here"], is_whole=is_whole)))


def whole(made: Sequence[Piece], **fields: Any) -> dict[str, Any]:
    answer = reply(**fields)
    answer.add(list(made))
    answer.end()
    Message.model_validate(answer.message())
    return answer.message()


async def _collected(answer: MessageReply, generation: Any) -> bytes:
    return b"".join([data async for data in answer.events(generation, AnthropicErrors())])


def events(made: Sequence[Piece], *options: Any, **fields: Any) -> list[dict[str, Any]]:
    """As they are on the wire; each says its type twice."""
    data = asyncio.run(_collected(reply(**fields), MadeGeneration(made, *options))).decode()
    assert data.endswith("\n\n")
    found = []
    for text in data.split("\n\n")[:-1]:
        match = re.fullmatch(r"event: (\w+)\ndata: (.*)", text)
        assert match
        found.append(json.loads(match[2]))
        assert found[-1]["type"] == match[1]
    return found


def added_up(stream: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """As Anthropic's documentation says."""
    message: dict[str, Any] = {}
    texts: list[str] = []
    for each in stream:
        match each["type"]:
            case "message_start":
                message = each["message"]
                assert message["content"] == [] and message["stop_reason"] is None
            case "content_block_start":
                assert each["index"] == len(message["content"]) and len(texts) == each["index"]
                message["content"].append(dict(each["content_block"]))
                texts.append("")
            case "content_block_delta":
                _add_delta(message["content"][each["index"]], each["delta"], texts)
                assert each["index"] == len(texts) - 1
            case "content_block_stop":
                block = message["content"][each["index"]]
                if block["type"] == "tool_use" and texts[each["index"]]:
                    block["input"] = json.loads(texts[each["index"]])
            case "message_delta":
                message |= each["delta"] | {"usage": each["usage"]}
            case kind:
                assert kind in ("ping", "message_stop")
    return message


def _add_delta(block: dict[str, Any], delta: dict[str, Any], texts: list[str]) -> None:
    match delta["type"]:
        case "text_delta":
            block["text"] += delta["text"]
        case "thinking_delta":
            block["thinking"] += delta["thinking"]
        case "signature_delta":
            block["signature"] = delta["signature"]
        case "input_json_delta":
            texts[-1] += delta["partial_json"]
        case kind:
            raise AssertionError(kind)


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    blocks = [{name: value for name, value in block.items() if name != "id"} for block in message["content"]]
    return {**message, "content": blocks, "id": "", "usage": {**message["usage"], "output_tokens": 0}}


@pytest.mark.parametrize(("thought", "text"), list(thoughts_and_texts()))
def test_the_events_are_the_whole_message(thought: str, text: str) -> None:
    expected = without_ids(whole(list(thinking([thought] if thought else [], [text]))))
    for cut, made in ways_to_say(thought, text):
        stream = events(made)
        message = without_ids(added_up(stream))
        assert message["usage"].pop("output_tokens_details")["thinking_tokens"] == (len(cut) if thought else 0)
        assert message == {**expected, "usage": {**message["usage"]}}
        assert [each["type"] for each in stream[-2:]] == ["message_delta", "message_stop"]


def test_the_blocks_of_an_answer() -> None:
    message = whole(list(thinking(["Hm", "."], [f"See.\n{NOW}\n{HERE}\n Bye."])))
    assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use", "tool_use", "text"]
    assert message["content"][3]["input"] == {"é": "</tool_call>"} and message["content"][2]["input"] == {}
    assert message["content"][4]["text"].strip() == "Bye." and message["stop_reason"] == "tool_use"
    assert whole(list(pieces([]))) ["content"] == []  # fmt: skip


def test_a_call_that_breaks_off_is_what_a_client_reads_of_the_stream() -> None:
    jiter = pytest.importorskip("jiter", reason="the official clients read streams with it")
    for size in range(len(HERE) - 12, 30, -1):
        message = whole(list(pieces([HERE[:size]], "length")))
        partial = "".join(
            each["delta"]["partial_json"] for each in events(list(pieces(list(HERE[:size]), "length")))
            if each["type"] == "content_block_delta" and each["delta"]["type"] == "input_json_delta"
        )  # fmt: skip
        for block in message["content"]:
            if block["type"] == "tool_use":
                assert block["input"] == (jiter.from_json(partial.encode(), partial_mode=True) if partial else {})


def test_an_error_in_the_middle_is_the_last_event() -> None:
    stream = events(list(pieces(["Hi"]))[:1], ApiError.unavailable("the engine died"))
    assert [each["type"] for each in stream] == [
        "message_start", "ping", "content_block_start", "content_block_delta", "error",
    ]  # fmt: skip
    assert MessageError.model_validate(stream[-1]).error.type == "overloaded_error"


def test_a_stream_that_has_nothing_to_say_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_S", 0.01)
    stream = events(list(pieces(["Hi"])), None, 0.05)
    assert sum(each["type"] == "ping" for each in stream) > 2
    assert added_up(stream)["content"] == [{"type": "text", "text": "Hi"}]
