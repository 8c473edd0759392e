"""What a message holds, in the ways that clients and gateways write it; and tool calls and their results as chat
templates expect them.

Templates as Qwen's show arguments as an object and leave out the ids of calls: there, results belong to calls by their
order. Called by the chat, responses and messages of each API.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator
from pydantic_core import PydanticCustomError

from qwench.serve.protocol.validation.field_table import rules_of
from qwench.serve.protocol.validation.reading import with_known_fields

TemplateMessage = dict[str, Any]
MAX_PARTS = 1024  # of a content
MAX_TURNS = 3072  # with all their parts and calls, which take 4 to 6 us each to read
_to_json = json.JSONEncoder(ensure_ascii=False).encode

_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "summary_text": "text", "refusal": "refusal"}
_THOUGHTS = {"thinking": "thinking", "reasoning": "text", "reasoning_text": "text", "thought": "text"}
_HIDDEN = ("redacted_thinking",)
_UNREADABLE = ("image", "image_url", "input_image", "input_audio", "input_file")  # refused, where JSON wouldn't be
_NAMES, _RULES = frozenset(("type", "text", "refusal")), rules_of(("part",))


class TextPart(BaseModel):
    """A part of a message's content, for the document: qwench's models read text and nothing else."""

    type: Literal["text", "input_text", "output_text"]
    text: str


def few_turns(turns: Any) -> Any:
    """A conversation that isn't too long to be read at all. Before any of it is looked at."""
    if isinstance(turns, list) and (count := len(turns) + sum(map(_num_parts, turns[:MAX_TURNS]))) > MAX_TURNS:
        raise PydanticCustomError(
            "too_long", "it has {count} turns, parts and calls together; no more than {most} are read",
            {"count": count, "most": MAX_TURNS},
        )  # fmt: skip
    return turns


def _num_parts(turn: Any) -> int:
    """Of a turn, or of a part that has some. A call has an object within it that is read as well."""
    if not isinstance(turn, dict):
        return 0
    content, calls = turn.get("content"), turn.get("tool_calls")
    count = 2 * len(calls) if isinstance(calls, list) else 0
    return count + (len(content) + sum(map(_num_parts, content[:MAX_PARTS])) if isinstance(content, list) else 0)


def text_and_thoughts(content: Any) -> tuple[Any, str | None]:
    """A content as one text, and apart from it the thoughts among its parts. Parts may be bare strings, or one part
    without a list. What is no content stays as it is, to be refused. Raises PydanticCustomError."""
    parts = [content] if isinstance(content, dict) else content
    if not isinstance(parts, list):
        return content, None
    if len(parts) > MAX_PARTS:
        raise PydanticCustomError("too_long", "content has {count} parts; no more than {most} are read",
                                  {"count": len(parts), "most": MAX_PARTS})  # fmt: skip
    texts, thoughts = [], []
    for part in parts:
        kind = _kind(part)
        if kind in _THOUGHTS:
            thoughts.append(part.get(_THOUGHTS[kind]) or "")
        elif kind not in _HIDDEN:
            texts.append(_text(part, kind))
    return "".join(texts), "".join(thought for thought in thoughts if isinstance(thought, str)) or None


def _text(part: Any, kind: str | None) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and not part.keys() <= _NAMES:
        with_known_fields(part, _NAMES, _RULES, "content[].")
    text = part.get(_TEXTS.get(kind or "text", "")) if isinstance(part, dict) else None
    if not isinstance(text, str):
        shown = f"of type {kind[:64]}" if kind else "without a type"
        raise PydanticCustomError("part", "content has a part {shown} that is no text", {"shown": shown})
    return text


def content_text(content: Any) -> Any:
    if isinstance(content, str):  # nearly always
        return content
    return text_and_thoughts(content)[0]


Content = Annotated[str, BeforeValidator(content_text, json_schema_input_type=str | list[TextPart | str])]


def result_text(result: Any) -> Any:
    """A tool's result: text or parts of a content as one text, anything else as JSON."""
    if result is None or isinstance(result, str):
        return result or ""
    if isinstance(result, dict):
        is_content = _kind(result) in _TEXTS
    else:
        is_content = isinstance(result, list) and all(_kind(part) in (*_TEXTS, *_UNREADABLE) for part in result)
    return content_text(result) if is_content else _to_json(result)


def _kind(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) else None


def written_arguments(arguments: Any) -> Any:
    """Arguments of a call as JSON."""
    if arguments is None:
        return ""
    return _to_json(arguments) if isinstance(arguments, dict) else arguments


def parts_text(parts: Any) -> str:
    """What the parts of a thought or of its summary say together."""
    texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return "".join(text for text in texts if isinstance(text, str))


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
        if are_results and all(result.get("tool_call_id") in places for result in turn):
            turn.sort(key=lambda result: places[result.get("tool_call_id")])
        places = {call["id"]: place for place, call in enumerate(turn[-1].get("tool_calls", ()))}
        ordered += turn
    return ordered
