"""Calls as models really write them, and what looks like one and isn't: whole, and for every way to cut the stream."""

from __future__ import annotations

import ast
import itertools
import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwench.text.call_reader import CallArguments, CallEnd, CallStart
from qwench.text.json_object import NotJsonError, ObjectScanner
from qwench.text.tool_calls import ToolCall, ToolCallParser, gathered, joined, parse

NAMES = ("weather", "now", "files.read")
OBJECT = '{"name": "weather", "arguments": {"city": "Paris"}}'
CALL = f"<tool_call>\n{OBJECT}\n</tool_call>"
NOW = '{"name": "now", "arguments": {}}'
PARIS, IT_IS = ToolCall("weather", '{"city": "Paris"}'), ToolCall("now", "{}")
FENCED = f"```json\n{OBJECT}\n```"
DEFINITION = '{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}'

CALLS: list[tuple[str, list[Any]]] = [
    (CALL, [PARIS]),
    (f"See.\n{CALL}\n", ["See.", PARIS]),
    # without the closing tag
    (CALL[:-12], [PARIS]), (f"<tool_call>{OBJECT}\n<tool_call>{NOW}", [PARIS, IT_IS]),
    (f"<tool_call>{OBJECT}</tool_", [PARIS]), (f"<tool_call>{OBJECT}\nThat is all.", [PARIS, "\nThat is all."]),
    # several in one tag
    (f"<tool_call>\n{OBJECT}\n{NOW}\n</tool_call>", [PARIS, IT_IS]),
    (f"<tool_call>[{OBJECT}, {NOW}]</tool_call>!", [PARIS, IT_IS, "!"]), (f"<tool_call>\n[\n{OBJECT}\n]", [PARIS]),
    (f"<tool_call>{OBJECT}{{}}</tool_call>", [PARIS, "{}</tool_call>"]),
    # arguments under another name, as a string, or none
    (CALL.replace("arguments", "parameters"), [PARIS]), ('<tool_call>{"name": "now"}</tool_call>', [IT_IS]),
    ('<tool_call>{"name": "now", "arguments": null}</tool_call>', [IT_IS]),
    ('<tool_call>{"name": "now", "arguments": ""}</tool_call>', [IT_IS]),
    (CALL.replace('{"city": "Paris"}', '"{\\"city\\": \\"Paris\\"}"'), [PARIS]),
    (CALL.replace('{"city": "Paris"}', '"{\'city\': \\"Paris\\"}"'), [PARIS]),
    ('<tool_call>{"arguments": {"city": "Paris"}, "name": "weather"}</tool_call>', [PARIS]),
    # strings that aren't JSON's
    (CALL.replace('"', "'"), [PARIS]),
    (CALL.replace("Paris", "Pa\nris"), [ToolCall("weather", '{"city": "Pa\\nris"}')]),
    (CALL.replace('"Paris"', "'say \"it\\'s\"'"), [ToolCall("weather", '{"city": "say \\"it\'s\\""}')]),
    (CALL.replace("Paris", "\\d+\\n"), [ToolCall("weather", '{"city": "\\\\d+\\n"}')]),
    (CALL.replace('"Paris"', "[True, None, 1,]"), [ToolCall("weather", '{"city": [true, null, 1]}')]),
    # a brace too many, or too few
    (CALL.replace("}}", "}}}"), [PARIS]), (f"{CALL[:-12]}}}\nWell.", [PARIS, "\nWell."]),
    (CALL.replace("}}", "}"), [PARIS]), (CALL[:-12].replace("}}", "}"), [PARIS]),
    # another form of the object
    (f'<tool_call>{{"type": "function", "function": {OBJECT}}}</tool_call>', [PARIS]),
    (f'<tool_call>{{"id": "1", "type": "function", {OBJECT[1:]}</tool_call>', [PARIS]),
    # other marks
    (f"<tools>\n{OBJECT}\n</tools>", [PARIS]), (OBJECT, [PARIS]), (f"[{OBJECT},\n{NOW}]\n", [PARIS, IT_IS]),
    (FENCED, [PARIS]), (f"I ask:\n\n{FENCED}\n", ["I ask:\n", PARIS]), (FENCED[:-4], [PARIS]),
    (FENCED.replace("json", ""), [PARIS]), (FENCED.replace("json", "tool_call"), [PARIS]),
    (f"{FENCED}\n\n```json\n{NOW}\n```", [PARIS, IT_IS]), (f"```\nx\n```\n{FENCED}", ["```\nx\n```", PARIS]),
    (f"```json\r\n{OBJECT}\r\n```\r\n", [PARIS]),
    # names
    (CALL.replace("weather", "functions.weather"), [PARIS]),
    (CALL.replace("weather", "files.read"), [ToolCall("files.read", PARIS.arguments)]),
]  # fmt: skip
TEXTS = [
    # other tools, other objects
    CALL.replace("weather", "other"), CALL.replace("weather", "weather.now2"), OBJECT.replace("weather", "other"),
    "<tool_call>now()</tool_call>", "<tool_call></tool_call>", '<tool_call>{"city": "Paris"}</tool_call>',
    '<tool_call>{"name": "weather", "city": "Paris"}</tool_call>', CALL.replace('{"city": "Paris"}', "[1]"),
    CALL.replace('{"city": "Paris"}', '"Paris"'), CALL.replace('{"city": "Paris"}', '"{} {}"'),
    CALL.replace('"weather"', "5"), '{"name": "now"}', '```json\n{"name": "now"}\n```', f"[{NOW}, 1]", "{", "[",
    # a tool's definition
    f"<tools>{DEFINITION}</tools>", DEFINITION, f"<tool_call>{DEFINITION}</tool_call>",
    '<tools>{"name": "now", "description": "The time.", "parameters": {}}</tools>',
    # code that shows a call
    f"```\n{CALL}\n```", f"```xml\n{CALL}\n```\n", f"~~~\n{CALL}", f"```python\nprint()\n{CALL}",
    f"Write `{CALL[:-13]}</tool_call>`.", f"So:\n{FENCED}\nThen read on.", f"{FENCED}\n```python\nx\n```",
    FENCED.replace("json", "python"), f"See {FENCED}", FENCED.replace(OBJECT, f"{OBJECT} // a call"),
    f"Like {OBJECT}", f"{OBJECT} is how.", "```json\n{}\n```", FENCED.replace("{", "{\n", 1)[:-20],
]  # fmt: skip


def read(pieces: Iterable[str], *, is_whole: bool = True) -> list[str | ToolCall]:
    parser = ToolCallParser(NAMES, is_whole=is_whole)
    return gathered([*itertools.chain.from_iterable(map(parser.push, pieces)), *parser.flush()])


def cuts(text: str) -> Iterable[list[str]]:
    yield list(text)
    yield from ([text[:at], text[at:]] for at in range(len(text)))
    yield from ([text[:at], text[at : at + 3], text[at + 3 :]] for at in range(0, len(text), 2))


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize(("text", "parts"), CALLS)
def test_what_is_a_call(text: str, parts: list[Any], is_whole: bool) -> None:
    assert parse(text, NAMES) == parts
    for pieces in cuts(text):
        assert read(pieces, is_whole=is_whole) == parts, pieces
    for part in parts:
        assert isinstance(part, str) or isinstance(json.loads(part.arguments), dict)


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_what_is_none(text: str, is_whole: bool) -> None:
    for pieces in cuts(text):
        assert read(pieces, is_whole=is_whole) == [text], pieces


def test_the_strict_rule_takes_none_of_the_others() -> None:
    for text, parts in CALLS:
        assert parse(text, NAMES, is_strict=True) == (parts if text in EXACT else [text])


EXACT = {
    CALL, f"See.\n{CALL}\n", '<tool_call>{"arguments": {"city": "Paris"}, "name": "weather"}</tool_call>',
    f'<tool_call>{{"id": "1", "type": "function", {OBJECT[1:]}</tool_call>', CALL.replace("weather", "files.read"),
}  # fmt: skip


def test_every_row_of_the_documents_table_is_so() -> None:
    """docs/serving.md: what is written, and what becomes of it."""
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    rows = re.findall(r"^\| [^|]* \| `` (.*?) `` \| (a call|text) \|$", page, re.MULTILINE)
    assert len(rows) > 12
    for written, outcome in rows:
        parts = parse(written.replace("↵", "\n"), NAMES)
        assert any(isinstance(part, ToolCall) for part in parts) == (outcome == "a call"), written


def test_arguments_are_given_as_they_come() -> None:
    parser = ToolCallParser(NAMES)
    assert parser.push('So\n<tool_call>\n{"name": "weather", "argu') == ["So"]
    assert parser.push('ments": {"ci') == [CallStart("weather"), CallArguments('{"ci')]
    assert joined(parser.push('ty": "Par')) == [CallArguments('ty": "Par')]
    assert joined(parser.push('is"}')) == [CallArguments('is"}'), CallEnd()]
    assert parser.push("}\n</tool_call>\n") == parser.flush() == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (CALL[: CALL.index(":", 50)], [CallStart("weather"), CallArguments('{"city"'), CallEnd(is_whole=False)]),
        (
            CALL.replace('"Paris"', "Paris"),
            [CallStart("weather"), CallArguments('{"city": '), CallEnd(is_whole=False), "Paris}}\n</tool_call>"],
        ),
    ],
)
def test_a_call_that_breaks_off_is_what_was_given_of_it(text: str, parts: list[Any]) -> None:
    for pieces in cuts(text):
        parser = ToolCallParser(NAMES)
        given = joined([*itertools.chain.from_iterable(map(parser.push, pieces)), *parser.flush()])
        assert given == parts
        assert read(pieces) == [text]


def test_text_is_given_as_soon_as_it_is_certain() -> None:
    parser = ToolCallParser(NAMES)
    assert parser.push("{") == parser.push('"na') == []
    assert joined(parser.push('med": ')) == ['{"named": ']
    assert joined(parser.push("1}\n```py\nx\n")) == ["1}\n```py\nx"]
    assert joined(parser.push("```\nHi\n")) == ["\n```\nHi"]
    assert parser.push("```json\n{") == [] and joined(parser.push('"a": 1}\n')) == ['\n```json\n{"a": 1}']


FRAGMENTS = [
    "<tool_call>", "</tool_call>", "<tools>", "</tools>", "```json\n", "```\n", "\n```", "\n", " ", "{", "}", "[", "]",
    '"', "'", "\\", ",", "`", "<tool_", '"name"', '"arguments": ', '"weather"', "{}", "True", "1", "Hi", OBJECT, NOW,
    CALL, '{"name": "now", "arguments": {"a": ', '{"type": "function", "function": ', FENCED, OBJECT.replace('"', "'"),
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=9).map("".join), st.data(), st.booleans())
@example("``", None, True)
@example(f" \n{OBJECT}\n```json\n{NOW}\n```\nx", None, True)
@example(f"<tool_call>{OBJECT}, ```", None, False)
def test_cut_anywhere_it_is_the_same(text: str, data: Any, is_whole: bool) -> None:
    whole = read([text], is_whole=is_whole)
    assert read(text, is_whole=is_whole) == whole
    if data is not None:
        at = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
        assert read([text[a:b] for a, b in itertools.pairwise([0, *at, len(text)])], is_whole=is_whole) == whole
    for part in whole if is_whole else ():
        assert isinstance(part, str) or isinstance(json.loads(part.arguments), dict)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=9).map("".join))
def test_nothing_is_lost_where_there_are_no_tools(text: str) -> None:
    parser = ToolCallParser(())
    assert "".join(map(str, [*itertools.chain.from_iterable(map(parser.push, text)), *parser.flush()])) == text


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet=st.characters(codec="utf-8"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=3), VALUES, min_size=1, max_size=3))
def test_what_python_writes_is_read_as_python_reads_it(value: dict[str, Any]) -> None:
    """repr is what models imitate. Its \\x and \\U escapes are left out: they are rarer than real backslashes."""
    text = repr(value)
    if re.search(r"\\[xU]", text):
        return
    scanner = ObjectScanner(is_loose=True)
    assert scanner.push(text) == len(text)
    assert {member.key: json.loads(member.text) for member in scanner.members} == ast.literal_eval(text)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), st.sampled_from([None, 1]), st.booleans())
def test_json_stays_as_it_is_written(value: dict[str, Any], indent: int | None, is_loose: bool) -> None:
    text = json.dumps({"": value}, indent=indent, ensure_ascii=False)
    scanner = ObjectScanner(is_loose=is_loose)
    assert [scanner.push(char) for char in text][-1] == 1
    [member] = scanner.members
    assert member.text == text[text.index("{", 1) : text.rindex("}", 0, -1) + 1]


def test_where_it_stops_being_json_does_not_depend_on_the_cut() -> None:
    text = '{"a": [1, tru e]}'
    for size in range(1, len(text) + 1):
        scanner = ObjectScanner(is_loose=True)
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        last = 13 // size
        assert [scanner.push(piece) for piece in pieces[:last]] == [None] * last
        with pytest.raises(NotJsonError) as caught:
            scanner.push(pieces[last])
        assert last * size + caught.value.at == 13 and scanner.unwritten == "tru"


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>{'" * 4000, "<tool_call>[" * 4000, "```json\n{" * 4000, "[" * 50_000, f"<tool_call>[{NOW}" * 1500,
        '<tool_call>{"a":\'<tools>{"a":"' * 1500, f"<tool_call>{NOW}" + "\n" * 50_000, "`" * 50_000,
        f"```\n{NOW}" * 1500, "<tool_call>" + '{"function":' * 4000, f"{FENCED}\n" * 1000,
    ],
    ids=lambda text: text[:24],
)  # fmt: skip
def test_time_is_linear_in_the_text(text: str) -> None:
    """50,000 characters take some tenths of a second; squared, that would be many minutes."""
    start = time.process_time()
    read([text[i : i + 7] for i in range(0, len(text), 7)])
    assert time.process_time() - start < 10
