"""Answers with tool calls as chats and responses show them: a stream adds up to the whole, however it was cut."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("fastapi", reason='the server needs pip install "qwench[serve]"')

from made_pieces import HERE, NOW, TEXTS, cuts, pieces, thinking

from qwench.serve.answers import Answers
from qwench.serve.openai.chat import ChatReply
from qwench.serve.openai.response_items import ResponseItems
from qwench.serve.protocol.openai.chat import ChatRequest
from qwench.text.tool_calls import ToolCallParser


def chat_reply(**fields: Any) -> ChatReply:
    body = ChatRequest.model_validate({"messages": [{"role": "user", "content": "x"}], **fields})
    return ChatReply("tiny", body, Answers([1], 1, lambda: ToolCallParser(["now", "here"])))


def events_of(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in re.findall(r"^data: (\{.*)$", data.decode(), re.MULTILINE)]


def whole_chat(texts: Sequence[str], finish_reason: str = "stop") -> dict[str, Any]:
    reply = chat_reply(logprobs=True)
    for piece in pieces(texts, finish_reason):
        reply.answers.add(piece)
    return dict(reply.whole()["choices"][0])


def streamed_chat(texts: Sequence[str], finish_reason: str = "stop") -> dict[str, Any]:
    """The chunks added up, as clients do it."""
    reply = chat_reply(logprobs=True, stream=True)
    content, calls, logprobs, choice = "", [], [], {}
    for chunk in events_of(b"".join(map(reply.piece, pieces(texts, finish_reason)))):
        [choice] = chunk["choices"]
        content += choice["delta"].get("content", "")
        logprobs += choice["logprobs"]["content"] if choice["logprobs"] else []
        for call in choice["delta"].get("tool_calls", ()):
            if call["index"] == len(calls):
                assert call["id"] and call["type"] == "function" and call["function"]["arguments"] == ""
                calls.append(call)
            else:
                calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return {"content": content, "calls": calls, "logprobs": logprobs, "finish_reason": choice["finish_reason"]}


@pytest.mark.parametrize("text", TEXTS)
def test_a_chat_stream_is_the_whole_answer(text: str) -> None:
    whole = whole_chat([text])
    for texts in cuts(text):
        streamed = streamed_chat(texts)
        assert streamed["content"] == (whole["message"]["content"] or "")
        functions = [call["function"] for call in whole["message"].get("tool_calls", ())]
        assert [call["function"] for call in streamed["calls"]] == functions
        assert streamed["finish_reason"] == whole["finish_reason"] == ("tool_calls" if functions else "stop")
        assert streamed["logprobs"] == whole_chat(texts)["logprobs"]["content"] and len(streamed["logprobs"]) == len(
            texts
        )


def test_a_message_with_calls() -> None:
    choice = whole_chat([TEXTS[2]])
    assert choice["message"]["content"] == "See."
    assert [call["function"] for call in choice["message"]["tool_calls"]] == [
        {"name": "now", "arguments": "{}"}, {"name": "here", "arguments": '{"é": "</tool_call>"}'},
    ]  # fmt: skip
    assert len({call["id"] for call in choice["message"]["tool_calls"]}) == 2
    assert whole_chat([NOW])["message"]["content"] is None
    assert "tool_calls" not in whole_chat(["Hi."])["message"]


def test_an_answer_that_was_cut_off() -> None:
    """Calls that are complete are there; the finish reason says that there was to be more."""
    choice = whole_chat([f"{NOW}\n{HERE[:30]}"], "length")
    assert choice["finish_reason"] == "length" and len(choice["message"]["tool_calls"]) == 1
    assert choice["message"]["content"] == f"\n{HERE[:30]}"


def response(texts: Sequence[str], status: str = "completed") -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Items and events."""
    items = ResponseItems(lambda type, **fields: f"data: {json.dumps({'type': type, **fields})}\n\n".encode())
    answers = Answers([1], 1, lambda: ToolCallParser(["now", "here"]))
    data = [items.add(answers.add(piece), piece.logprobs) for piece in pieces(texts)]
    return items.output, events_of(b"".join([*data, items.end(status)]))


def shape(items: list[dict[str, Any]]) -> list[Any]:
    return [
        item["content"][0]["text"] if item["type"] == "message" else (item["name"], item["arguments"]) for item in items
    ]


@pytest.mark.parametrize("text", TEXTS)
def test_items_of_a_response(text: str) -> None:
    expected = shape(response([text])[0])
    for texts in cuts(text):
        items, events = response(texts)
        assert shape(items) == expected and {item["status"] for item in items} == {"completed"}
        done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
        assert done == items and [item["id"] for item in added] == [item["id"] for item in items]
        for index, item in enumerate(items):
            mine = [event for event in events if event.get("item_id") == item["id"]]
            assert {event["output_index"] for event in mine} == {index}
            deltas = "".join(event["delta"] for event in mine if event["type"].endswith(".delta"))
            assert deltas == (item["content"][0]["text"] if item["type"] == "message" else item["arguments"])


def test_the_order_of_items_and_of_their_events() -> None:
    items, events = response(["a\n", HERE, " b\n", NOW, "c"])
    assert shape(items) == ["a", ("here", '{"é": "</tool_call>"}'), " b", ("now", "{}"), "c"]
    assert [event["type"].removeprefix("response.") for event in events[5:10]] == [
        "output_item.done", "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done",
    ]  # fmt: skip
    assert items[0]["content"][0]["logprobs"] and not response([NOW])[0][0].get("content")
    [message], _ = response([])
    assert message["content"][0]["text"] == ""


@pytest.mark.parametrize("text", [f"Hm. {NOW}", "", "Hm.\n"])
def test_thoughts_are_apart_and_hold_no_calls(text: str) -> None:
    for thought in cuts(text):
        whole, reply = chat_reply(), chat_reply(stream=True)
        for piece in thinking(thought, [f"Hi.\n{HERE}"]):
            whole.answers.add(piece)
        message = whole.whole()["choices"][0]["message"]
        chunks = events_of(b"".join(map(reply.piece, thinking(thought, [f"Hi.\n{HERE}"]))))
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        for name in ("reasoning_content", "reasoning"):
            assert message.get(name, "") == text == "".join(delta.get(name, "") for delta in deltas)
        assert message["content"] == "Hi." and len(message["tool_calls"]) == 1
        usage = whole.whole()["usage"]["completion_tokens_details"]
        assert usage == {"reasoning_tokens": len(thought)}


def test_a_response_with_a_thought() -> None:
    items = ResponseItems(lambda type, **fields: f"data: {json.dumps({'type': type, **fields})}\n\n".encode())
    answers = Answers([1], 1, lambda: ToolCallParser(["now", "here"]))
    data = b"".join(items.add(answers.add(piece), piece.logprobs) for piece in thinking(["Hm", "."], ["Hi.", NOW]))
    events = events_of(data + items.end("completed"))
    assert [item["type"] for item in items.output] == ["reasoning", "message", "function_call"]
    assert items.output[0]["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert [event["type"].removeprefix("response.") for event in events[:7]] == [
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
    ]  # fmt: skip


def test_no_parser_means_all_is_text() -> None:
    answers = Answers([1], 1)
    assert [answers.add(piece) for piece in pieces([NOW, HERE])] == [[NOW], [HERE], []]
    assert answers.choices[0].finish_reason == "stop" and answers.choices[0].text == NOW + HERE


def test_every_answer_has_its_own_parser() -> None:
    reply = ChatReply("tiny", ChatRequest.model_validate({"messages": [{"role": "user", "content": "x"}], "n": 2}),
                      Answers([1], 2, lambda: ToolCallParser(["now"])))  # fmt: skip
    for a, b in itertools.zip_longest(pieces(list(NOW)), pieces(list("Hello."))):
        for choice, piece in enumerate((a, b)):
            if piece is not None:
                reply.answers.add(piece._replace(choice=choice))
    first, second = reply.whole()["choices"]
    assert first["message"]["tool_calls"] and second["message"]["content"] == "Hello."
    assert (first["finish_reason"], second["finish_reason"]) == ("tool_calls", "stop")
