"""Messages with tool calls and their results as chat templates expect them.

Templates as Qwen's show arguments as an object and leave out the ids of calls: there, results belong to calls by their
order. Called by protocol/chat.py and protocol/responses.py.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any, Protocol

TemplateMessage = dict[str, Any]


class Part(Protocol):
    """Of a message's content."""

    text: str


def text_of(content: str | Sequence[Part] | None) -> str:
    """A message's content as one text."""
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


def called(call_id: str | None, name: str, arguments: str) -> dict[str, Any]:
    """An entry of a message's tool_calls. arguments: JSON, or nothing where there are none; what isn't an object stays
    as it is written."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = arguments
    return {"type": "function", "id": call_id, "function": {
        "name": name, "arguments": value if isinstance(value, dict) else arguments
    }}  # fmt: skip


def in_order_of_calls(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """Results that follow the calls of one message in the order of these calls, if their ids are all among them."""
    ordered: list[TemplateMessage] = []
    places: dict[str | None, int] = {}
    for are_results, group in itertools.groupby(messages, lambda message: message["role"] == "tool"):
        turn = list(group)
        if are_results and all(result["tool_call_id"] in places for result in turn):
            turn.sort(key=lambda result: places[result["tool_call_id"]])
        places = {call["id"]: place for place, call in enumerate(turn[-1].get("tool_calls", ()))}
        ordered += turn
    return ordered
