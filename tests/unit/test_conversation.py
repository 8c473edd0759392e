"""Tool calls and their results on the way from a request to the chat template."""

from __future__ import annotations

import time
from typing import Any

import pytest

pytest.importorskip("fastapi", reason='the server needs pip install "qwench[serve]"')

from qwench.serve.protocol.openai.chat import ChatMessage, to_template
from qwench.serve.protocol.openai.responses import ResponsesRequest
from qwench.serve.protocol.shared.conversation import called, in_order_of_calls

WEATHER = {"name": "weather", "arguments": '{"city": "Paris", "days": 1.0}'}
NOW = {"name": "now", "arguments": "{}"}


def call(call_id: str, function: dict[str, str]) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": function}


def test_a_chat() -> None:
    """Arguments become an object, results get the order of their calls."""
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call("a", WEATHER), call("b", NOW)]},
        {"role": "tool", "tool_call_id": "b", "content": "noon"},
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "sunny"}]},
        {"role": "assistant", "content": "Sunny."},
    ]
    assert to_template([ChatMessage.model_validate(message) for message in messages]) == [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [
            called("a", "weather", '{"city": "Paris", "days": 1.0}'), called("b", "now", "{}"),
        ]},
        {"role": "tool", "content": "sunny", "tool_call_id": "a"},
        {"role": "tool", "content": "noon", "tool_call_id": "b"},
        {"role": "assistant", "content": "Sunny."},
    ]  # fmt: skip
    assert called("a", **WEATHER)["function"]["arguments"] == {"city": "Paris", "days": 1.0}
    assert called("a", "now", "") == called("a", "now", "{}")


@pytest.mark.parametrize("arguments", ["{", "[1]", "null", '"{}"', "[" * 100_000])
def test_arguments_that_are_no_object_stay_as_they_are(arguments: str) -> None:
    assert called("a", "weather", arguments)["function"]["arguments"] == arguments


def test_results_without_their_calls_stay_where_they_are() -> None:
    calls = {"role": "assistant", "tool_calls": [{"id": "a"}, {"id": "b"}]}
    results = [{"role": "tool", "tool_call_id": call_id} for call_id in ("b", "c", "a")]
    assert in_order_of_calls([calls, *results]) == [calls, *results]
    assert in_order_of_calls([*results, calls]) == [*results, calls]


def test_many_results_are_sorted_once() -> None:
    ids = [str(i) for i in range(8192)]
    calls = {"role": "assistant", "tool_calls": [{"id": call_id} for call_id in ids]}
    results = [{"role": "tool", "tool_call_id": call_id} for call_id in ids]
    start = time.process_time()
    assert in_order_of_calls([calls, *reversed(results)]) == [calls, *results]
    assert time.process_time() - start < 1


def test_a_response() -> None:
    """Calls belong to the answer before them, or make one."""
    items = [
        {"role": "user", "content": "x"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "See."}]},
        {"type": "function_call", "call_id": "a", "status": "completed", "id": "fc", **WEATHER},
        {"type": "function_call", "call_id": "b", **NOW},
        {"type": "function_call_output", "call_id": "b", "output": "noon"},
        {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "sunny"}]},
        {"type": "function_call", "call_id": "c", **NOW},
    ]
    assert ResponsesRequest.model_validate({"input": items, "instructions": "Be brief."}).to_messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "See.", "tool_calls": [called("a", **WEATHER), called("b", **NOW)]},
        {"role": "tool", "content": "sunny", "tool_call_id": "a"},
        {"role": "tool", "content": "noon", "tool_call_id": "b"},
        {"role": "assistant", "content": "", "tool_calls": [called("c", **NOW)]},
    ]
