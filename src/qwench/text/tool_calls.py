"""Function calls in an answer, as Qwen2.5 and Hermes write them, found while the text is still coming:

    <tool_call>
    {"name": "weather", "arguments": {"city": "Paris"}}
    </tool_call>

A call is exactly that: between the tags one JSON object with the name of a tool and an object of arguments. Anything
else between the tags is text. So a call is given out only when it is complete: streamed arguments could not be taken
back if the rest turned out to be invalid.

Called by the server; from Python use `parse`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from qwench.text.detokenizer import possible_start
from qwench.text.json_object import BLANKS, NotJsonError, ObjectScanner
from qwench.text.tokenizer import Tokenizer, special_ids

OPEN, CLOSE = "<tool_call>", "</tool_call>"
LINE_BREAKS = ("\r\n", "\n")
BEGINNINGS = (OPEN, *(line_break + OPEN for line_break in LINE_BREAKS))


@dataclass(frozen=True)
class ToolCall:
    """arguments: a JSON object, as the model wrote it."""

    name: str
    arguments: str


Part: TypeAlias = "str | ToolCall"

# What the tags are: text for Qwen2's tokenizer, tokens for Qwen2.5's; special tokens would be left out of texts by
# default.
TagKind = Literal["text", "tokens", "special tokens"]


def parse(text: str, names: Collection[str] | None = None) -> list[Part]:
    """A whole answer as its texts and calls, in their order. names: of the tools; None: any name is one.

    White space that only separates calls is dropped: the line break before a call, and any text around calls that is
    only white space.
    """
    parser = ToolCallParser(names)
    return joined([*parser.push(text), *parser.flush()])


def tag_kind(tokenizer: Tokenizer) -> TagKind:
    """What the tags are to a tokenizer."""
    ids = special_ids(tokenizer, (OPEN, CLOSE))
    if any(map(tokenizer.is_special, ids)):
        return "special tokens"
    return "tokens" if len(ids) == 2 else "text"


def joined(parts: Iterable[Part]) -> list[Part]:
    """The same, with consecutive texts joined."""
    result: list[Part] = []
    for are_texts, group in itertools.groupby(parts, lambda part: isinstance(part, str)):
        same = list(group)
        result += ["".join(map(str, same))] if are_texts else same
    return result


class ToolCallParser:
    """Parses a streamed answer. What `push` and `flush` return, `joined`, is what `parse` returns for the whole text,
    however it was cut into pieces."""

    def __init__(self, names: Collection[str] | None = None) -> None:
        self._names = None if names is None else frozenset(names)
        self._call: _OpenCall | None = None
        self._held = ""  # may be the beginning of a call, or white space before one
        self._is_blank = True  # only white space was read since the last call, and is held
        self._follows_call = False
        self._parts: list[Part] = []

    def push(self, text: str) -> list[Part]:
        """The parts that are complete with the next piece of the answer."""
        self._read(text)
        return self._take_parts()

    def flush(self) -> list[Part]:
        """What was held back, when the answer ends: a call that isn't complete is text."""
        while self._call is not None:
            self._read(self._give_up(self._call))
        if self._held.strip(BLANKS) or not (self._is_blank and self._follows_call):
            self._show(self._held)
        self._held = ""
        return self._take_parts()

    def _read(self, text: str) -> None:
        while text:
            text = self._read_text(text) if self._call is None else self._read_call(self._call, text)

    def _read_text(self, text: str) -> str:
        """Reads text up to a call. Returns what comes after the opening tag."""
        text, self._held = self._held + text, ""
        before, tag, after = text.partition(OPEN)
        if tag:
            size = next((len(line_break) for line_break in LINE_BREAKS if before.endswith(line_break)), 0)
        else:
            size = possible_start(before, BEGINNINGS)
        cut = len(before) - size
        if self._is_blank and not before[:cut].strip(BLANKS):
            cut = 0
        self._show(before[:cut])
        if tag:
            self._call = _OpenCall(before[cut:], self._names)
        else:
            self._held = before[cut:]
        return after

    def _read_call(self, call: _OpenCall, text: str) -> str:
        """Reads a call. Returns what comes after its end, or all of it if it is no call."""
        try:
            end = call.push(text)
        except (NotJsonError, _NotACallError):
            return self._give_up(call)
        if end is None:
            return ""
        self._parts.append(call.call())
        self._call, self._is_blank, self._follows_call = None, True, True
        return text[end:]

    def _give_up(self, call: _OpenCall) -> str:
        """It is no call: the opening tag becomes text, and what came after it is read again."""
        self._call = None
        self._show(call.gap + OPEN)
        return call.text

    def _show(self, text: str) -> None:
        if text:
            self._is_blank = False
            self._parts.append(text)

    def _take_parts(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts


class _NotACallError(ValueError):
    """The object has no tool's name or no arguments, or isn't followed by the closing tag."""


class _OpenCall:
    """What follows an opening tag, as long as it may become a call. gap: white space before the tag."""

    def __init__(self, gap: str, names: frozenset[str] | None) -> None:
        self.gap, self._names = gap, names
        self._pieces: list[str] = []
        self._scanner = ObjectScanner()
        self._name, self._arguments = "", ""
        self._tail: str | None = None  # behind the object

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def push(self, text: str) -> int | None:
        """The index in `text` behind the closing tag; None: it goes on. Raises NotJsonError or _NotACallError."""
        self._pieces.append(text)
        at = 0
        if self._tail is None:
            end = self._scanner.push(text)
            if end is None:
                return None
            self._read_object()
            self._tail, at = "", end
        self._tail += text[at:]
        tag = self._tail.lstrip(BLANKS)
        if tag.startswith(CLOSE):
            return len(text) - (len(tag) - len(CLOSE))
        if not CLOSE.startswith(tag):
            raise _NotACallError
        return None

    def _read_object(self) -> None:
        members = self._scanner.members(self.text)
        name, self._arguments = members.get("name", ""), members.get("arguments", "")
        if not (name.startswith('"') and self._arguments.startswith("{")):
            raise _NotACallError
        self._name = json.loads(name)
        if self._names is not None and self._name not in self._names:
            raise _NotACallError

    def call(self) -> ToolCall:
        return ToolCall(self._name, self._arguments)
