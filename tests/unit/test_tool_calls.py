"""Calls by the strict rule: against a reader of whole texts built on Python's json, for every way to cut them."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwench.text.call_reader import CallArguments, CallEnd, CallStart
from qwench.text.tool_calls import ToolCall, ToolCallParser, gathered, joined
from qwench.text.tool_calls import parse as parse_by_any_rule

NAMES = ("weather", "now")
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
NOW = '<tool_call>{"name":"now","arguments":{}}</tool_call>'
PARIS = ToolCall("weather", '{"city": "Paris"}')
BLANKS = " \t\r\n"
Part = str | ToolCall


def parse(text: str, names: Sequence[str] | None = None) -> list[Part]:
    return parse_by_any_rule(text, names, is_strict=True)


def truth(text: str, names: tuple[str, ...] | None = NAMES) -> list[Part]:
    """The same of a whole text, read in another way: json.JSONDecoder at each tag."""
    parts: list[Part] = []
    shown, at = 0, 0  # up to where the text is in parts, and is looked through
    while (tag := text.find("<tool_call>", at)) >= 0:
        found = _call_at(text, tag + len("<tool_call>"), names)
        if found is None:
            at = tag + 1
            continue
        call, end = found
        before = text[shown:tag]
        before = "" if not before.strip(BLANKS) else before.removesuffix("\n") if before[-2:] != "\r\n" else before[:-2]
        parts += [*([before] if before else []), call]
        shown = at = end
    rest = text[shown:]
    if rest and (rest.strip(BLANKS) or not parts):
        parts.append(rest)
    return parts


def _call_at(text: str, at: int, names: tuple[str, ...] | None) -> tuple[ToolCall, int] | None:
    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    at += len(text[at:]) - len(text[at:].lstrip(BLANKS))
    try:
        value, end = json.JSONDecoder(parse_constant=refuse).raw_decode(text, at)
        name, arguments = value["name"], value["arguments"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    rest = text[end:].lstrip(BLANKS)
    if not (isinstance(name, str) and isinstance(arguments, dict) and rest.startswith("</tool_call>")):
        return None
    if names is not None and name not in names:
        return None
    return ToolCall(name, json.dumps(arguments)), len(text) - len(rest) + len("</tool_call>")


def read(pieces: list[str], names: tuple[str, ...] | None = NAMES) -> list[Part]:
    """What a stream of pieces gives, texts that follow each other joined."""
    parser = ToolCallParser(names, is_strict=True, is_whole=True)
    parts = [part for piece in pieces for part in parser.push(piece)] + parser.flush()
    return gathered(parts)


def with_values(parts: list[Part]) -> list[Any]:
    """Arguments as values: the parser keeps them as they are written."""
    return [part if isinstance(part, str) else (part.name, json.loads(part.arguments)) for part in parts]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("Hello.\n", ["Hello.\n"]),
        (" \n", [" \n"]),
        (CALL, [PARIS]),
        (f"Let me see.\n{CALL}\n", ["Let me see.", PARIS]),
        (f"Let me see.\r\n{CALL.replace(chr(10), chr(13) + chr(10))}\r\n", ["Let me see.", PARIS]),
        (f"One.\n\n{CALL}\n and \n{CALL}\nTwo.\n", ["One.\n", PARIS, "\n and ", PARIS, "\nTwo.\n"]),
        (f"{CALL}\n{CALL}{CALL}", [PARIS] * 3),
        ('<tool_call>{"arguments":{},"name":"now"}</tool_call>', [ToolCall("now", "{}")]),
        (
            '<tool_call>\n{"name": "now", "arguments": {"x": "</tool_call>{\\"}\\u0041\\\\"}}\n</tool_call>',
            [ToolCall("now", '{"x": "</tool_call>{\\"}\\u0041\\\\"}')],
        ),
        (
            '<tool_call>\n{"n\\u0061me": "n\\u006fw", "arguments": {"é": [1e400, {"🦊": {}}], "é": 1.0}}\n</tool_call>',
            [ToolCall("now", '{"é": [1e400, {"🦊": {}}], "é": 1.0}')],
        ),
        (
            '<tool_call>{"name": "wea <tool_call>{"name": "now", "arguments": {}}</tool_call>',
            ['<tool_call>{"name": "wea ', ToolCall("now", "{}")],
        ),
    ],
)
def test_calls_and_text(text: str, parts: list[Part]) -> None:
    assert parse(text, NAMES) == parts == read(list(text))


@pytest.mark.parametrize(
    "text",
    [
        CALL[:-1], CALL[:30], CALL[:5], "<tool_call>", "a\n<tool_call>\n", CALL.replace("}}", "}"),
        CALL.replace("weather", "wether"), CALL.replace('{"city": "Paris"}', '"{\\"city\\": \\"Paris\\"}"'),
        CALL.replace('{"city": "Paris"}', "null"), CALL.replace('{"city": "Paris"}', "[]"), CALL.replace("Paris", "\n"),
        CALL.replace('"name"', '"function"'), CALL.replace("arguments", "parameters"), CALL.replace('"', "'"),
        CALL.replace('"Paris"', "NaN"), CALL.replace('"Paris"', "01"), CALL.replace('"Paris"}', '"Paris",}'),
        CALL.replace('"Paris"', '"\\x"'), CALL.replace('"Paris"', '"\\u12G4"'), CALL.replace('"Paris"', "+1"),
        CALL.replace("</tool_call>", "x</tool_call>"), CALL.replace("</tool_call>", "<tool_call>"),
        CALL.replace('"weather"', "1"), CALL.replace('"weather"', "1" * 5000),
        CALL.replace('"weather"', "[" * 5000 + "]" * 5000),
        '<tool_call>["weather"]</tool_call>', "<tool_call>weather()</tool_call>",
        "</tool_call>" + CALL[11:], '<tool_call>\n{"name": "now", "arguments": {"a": ' + "[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_call_comes_back_as_it_is(text: str) -> None:
    assert parse(text, NAMES) == [text] == read(list(text))


def test_any_name_is_one_where_none_are_given() -> None:
    text = CALL.replace("weather", "anything")
    assert parse(text) == [ToolCall("anything", '{"city": "Paris"}')] and parse(text, []) == [text]


def test_a_call_is_given_out_as_soon_as_it_is_there() -> None:
    parser = ToolCallParser(NAMES, is_strict=True, is_whole=True)
    assert parser.push("Let me see.\n<tool") == ["Let me see."]
    assert parser.push(CALL[5:-1]) == []
    assert parser.push(">\n") == [CallStart("weather"), CallArguments('{"city": "Paris"}'), CallEnd()]
    assert joined(parser.push("<tool_call>{wrong")) == ["\n<tool_call>{wrong"]  # and so is what isn't one
    assert parser.flush() == []


def test_arguments_that_python_can_not_read_are_json_all_the_same() -> None:
    for value in ("1" * 5000, "[" * 5000 + "]" * 5000, '"\\ud800"', "1e999"):
        arguments = f'{{"x": {value}}}'
        assert parse(CALL.replace('{"city": "Paris"}', arguments)) == [ToolCall("weather", arguments)]


FRAGMENTS = [
    "<tool_call>", "</tool_call>", "\n", "\r\n", " ", "{", "}", "[", "]", '"', "\\", ",", ":", '"name"', '"arguments"',
    '"now"', "{}", "1.5", "-", "true", "é", "🦊", "<", "<tool_", "u00e9", CALL, CALL[:-12], CALL[12:],
    '{"name": "now", "arguments": {"a": ', "}}\n</tool_call>", "Hello", '"name": "now", "arguments": {',
]  # fmt: skip
ARGUMENTS = st.dictionaries(
    st.text(max_size=3),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        | st.text() | st.sampled_from(FRAGMENTS),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)  # fmt: skip


@st.composite
def calls(draw: Any) -> str:
    """Most of them right; some cut off, or with a part replaced."""
    fields: dict[str, Any] = {"name": draw(st.sampled_from([*NAMES, "other"])), "arguments": draw(ARGUMENTS)}
    if draw(st.booleans()):
        fields = dict(reversed(fields.items()))
    ascii_only, indent, gap = (
        draw(st.booleans()),
        draw(st.sampled_from([None, 1])),
        draw(st.sampled_from(FRAGMENTS[2:5])),
    )
    text = f"<tool_call>{gap}{json.dumps(fields, ensure_ascii=ascii_only, indent=indent)}{gap}</tool_call>"
    damage = draw(st.sampled_from(["", "", "", "cut", "replace"]))
    at = draw(st.integers(0, len(text)))
    if damage == "cut":
        return text[:at]
    return text[:at] + draw(st.sampled_from(FRAGMENTS)) + text[at + 1 :] if damage else text


TEXTS = st.lists(st.sampled_from(FRAGMENTS) | calls() | st.text(max_size=4), max_size=8).map("".join)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.data())
@example(" \n" + CALL[:20], None)
@example(CALL + "\n<", None)
@example(f"a\r\r\n{CALL}\r\n \n<tool_call>", None)
@example('<tool_call>{"<tool_call>{":":",",":",",":",' + CALL, None)
def test_cut_anywhere_it_is_what_the_whole_is(text: str, data: Any) -> None:
    whole = parse(text, NAMES)
    assert with_values(whole) == with_values(truth(text))
    assert read(list(text)) == whole
    if data is not None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
        assert read([text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]) == whole


@pytest.mark.parametrize("text", [f"See.\n{NOW}\n!", f"<tool_call>{NOW}\n", NOW.replace("{}", '{"":"\\"é</tool"}')])
def test_every_cut_into_three(text: str) -> None:
    whole = truth(text)
    for a, b in itertools.combinations_with_replacement(range(len(text) + 1), 2):
        assert with_values(read([text[:a], text[a:b], text[b:]])) == with_values(whole)


@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=10).map("".join))
@settings(max_examples=100, deadline=None)
def test_nothing_is_lost(text: str) -> None:
    """With no tools to call, all of it is text."""
    assert "".join(map(str, read(list(text), ()))) == text


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"' * 4000, "<tool_call>{" * 4000, "<tool_call>" * 4000, "<tool_call>\n" + " " * 50_000,
        '<tool_call>{"<tool_call>{":' + '":",",' * 8000, '<tool_call>{"a":"' + "\\u0041" * 8000,
        '<tool_call>{"a":' + "[" * 50_000 + "}", '<tool_call>{"a":' + "1" * 50_000,
    ],
    ids=lambda text: text[:24],
)  # fmt: skip
def test_time_is_linear_in_the_text(text: str) -> None:
    """50,000 characters take some tenths of a second; squared, that would be many minutes."""
    start = time.process_time()
    assert read([text[i : i + 7] for i in range(0, len(text), 7)]) == [text]
    assert time.process_time() - start < 10
