"""The lines of Ollama's answers add up to the whole one, however it was cut."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("fastapi", reason='the server needs pip install "qwench[serve]"')

from made_pieces import HERE, NOW, pieces, thinking, thoughts_and_texts, ways_to_say
from test_message_stream import MadeGeneration

from qwench.serve.answers import Answers
from qwench.serve.failures import ApiError
from qwench.serve.ollama.chat import _ChatReply
from qwench.serve.ollama.reply import Stopwatch
from qwench.serve.processes.engine_client import Piece
from qwench.serve.protocol.ollama.replies import OllamaChat, OllamaError
from qwench.serve.protocol.ollama.requests import OllamaChatRequest
from qwench.text.tool_calls import ToolCallParser


def reply(logprobs: bool) -> _ChatReply:
    body = OllamaChatRequest.model_validate({"messages": [{"role": "user", "content": "x"}], "logprobs": logprobs})
    answers = Answers([1], 1, lambda: ToolCallParser(["now", "here"], is_whole=True))
    return _ChatReply("tiny", body, answers, Stopwatch())


def whole(made: Sequence[Piece], logprobs: bool = False) -> dict[str, Any]:
    answer = reply(logprobs)
    for piece in made:
        answer.add(piece)
    return answer.whole()


async def _lines(answer: _ChatReply, generation: Any) -> bytes:
    return b"".join([data async for data in answer.lines(generation)])


def lines(made: Sequence[Piece], failure: ApiError | None = None, logprobs: bool = False) -> list[dict[str, Any]]:
    data = asyncio.run(_lines(reply(logprobs), MadeGeneration(made, failure)))
    return [json.loads(line) for line in data.splitlines()]


def said(message: dict[str, Any]) -> Any:
    functions = [call["function"] for call in message.get("tool_calls", ())]
    return message["content"], message.get("thinking", ""), functions


@pytest.mark.parametrize(("thought", "text"), list(thoughts_and_texts()))
def test_the_lines_are_the_whole_answer(thought: str, text: str) -> None:
    expected = said(whole(list(thinking([thought] if thought else [], [text])))["message"])
    for _, made in ways_to_say(thought, text):
        stream = lines(made)
        messages = [line["message"] for line in stream]
        added = {
            "content": "".join(message["content"] for message in messages),
            "thinking": "".join(message.get("thinking", "") for message in messages),
            "tool_calls": [call for message in messages for call in message.get("tool_calls", ())],
        }
        assert said(added) == expected
        assert [line["done"] for line in stream] == [False] * (len(stream) - 1) + [True]
        assert stream[-1]["done_reason"] == "stop"


def test_calls_have_places() -> None:
    answer = OllamaChat.model_validate(whole(list(pieces([f"See.\n{NOW}\n{HERE}\n"])), logprobs=False))
    assert answer.message.content == "See." and answer.message.tool_calls is not None
    assert [(call.function.index, call.function.name) for call in answer.message.tool_calls] == [
        (0, "now"),
        (1, "here"),
    ]


def test_log_probabilities_come_once_each() -> None:
    stream = lines(list(pieces(list("Hello."))), None, True)
    entries = [entry for line in stream for entry in line.get("logprobs", ())]
    assert entries == whole(list(pieces(list("Hello."))), True)["logprobs"] and len(entries) == 6


def test_an_error_in_the_middle_is_the_last_line() -> None:
    stream = lines(list(pieces(["Hi"]))[:1], ApiError.unavailable("the engine died"))
    assert stream[0]["message"]["content"] == "Hi"
    assert OllamaError.model_validate(stream[-1]).error == "the engine died"
