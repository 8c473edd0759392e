"""Function calls in an answer, as Qwen2.5 and Hermes write them, found while the text is still coming:

    <tool_call>
    {"name": "weather", "arguments": {"city": "Paris"}}
    </tool_call>

By the strict rule a call is exactly that. The loose one, the default, also takes what can only be meant as a call:
without the closing tag, several in one tag, between <tools>, in a block of JSON that ends the answer, or as the whole
answer; call_reader.py knows how the object may look. A tag in a block of code is text, as is all that is doubtful.

Called by the server; from Python use `parse`.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from qwench.text.call_reader import CallArguments, CallPart, CallReader, CallRules, CallStart, NotACallError
from qwench.text.code_marks import CodeMarks
from qwench.text.json_object import BLANKS
from qwench.text.thoughts import ThoughtText
from qwench.text.tokenizer import Tokenizer, special_ids

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FENCE = "```"
_TAGS = {OPEN: CLOSE, "<tools>": "</tools>"}
_LINE_BREAKS = ("\r\n", "\n")
_FENCES = tuple(f"{FENCE}{kind}{end}" for kind in ("json", "tool_call", "") for end in _LINE_BREAKS)


def _openings(tags: Iterable[str], fences: Iterable[str]) -> tuple[re.Pattern[str], frozenset[str]]:
    """What finds them, and all their beginnings, also of the line break before."""
    fences = [f"\n{fence}" for fence in fences]
    whole = [*tags, *fences, *(f"\r{fence}" for fence in fences), *(end + tag for tag in tags for end in _LINE_BREAKS)]
    beginnings = frozenset(each[:size] for each in whole for size in range(1, len(each)))
    return re.compile("|".join(map(re.escape, (*tags, *fences)))), beginnings


_STRICT, _LOOSE = _openings((OPEN,), ()), _openings(tuple(_TAGS), _FENCES)
_LONGEST = max(map(len, _LOOSE[1]))


@dataclass(frozen=True)
class ToolCall:
    """arguments: a JSON object."""

    name: str
    arguments: str


Part: TypeAlias = "str | ThoughtText | CallPart"

# What the tags are: text for Qwen2's tokenizer, tokens for Qwen2.5's; special tokens would be left out of texts by
# default.
TagKind = Literal["text", "tokens", "special tokens"]


def parse(text: str, names: Collection[str] | None = None, *, is_strict: bool = False) -> list[str | ToolCall]:
    """A whole answer as its texts and calls, in their order. names: of the tools; None: any name is one.

    White space that only separates calls is dropped: the line break before a call, and any text around calls that is
    only white space.
    """
    parser = ToolCallParser(names, is_strict=is_strict, is_whole=True)
    return gathered([*parser.push(text), *parser.flush()])


def tag_kind(tokenizer: Tokenizer) -> TagKind:
    """What the tags are to a tokenizer."""
    ids = special_ids(tokenizer, (OPEN, CLOSE))
    if any(map(tokenizer.is_special, ids)):
        return "special tokens"
    return "tokens" if len(ids) == 2 else "text"


def joined(parts: Iterable[Part]) -> list[Part]:
    """The same, with consecutive texts joined, and consecutive pieces of arguments."""
    result: list[Part] = []
    for kind, group in itertools.groupby(parts, type):
        if kind is str:
            result.append("".join(map(str, group)))
        elif kind is CallArguments:
            result.append(CallArguments("".join(part.text for part in group if isinstance(part, CallArguments))))
        else:
            result += group
    return result


def gathered(parts: Iterable[Part]) -> list[str | ToolCall]:
    """The same, with calls as a whole."""
    result: list[str | ToolCall] = []
    for part in joined(parts):
        if isinstance(part, str):
            result.append(part)
        elif isinstance(part, CallStart):
            result.append(ToolCall(part.name, ""))
        elif isinstance(part, CallArguments):
            call = result.pop()
            assert isinstance(call, ToolCall)
            result.append(ToolCall(call.name, part.text))
    return result


class ToolCallParser:
    """Parses a streamed answer. What `push` and `flush` return is the same in sum, however the text was cut.

    is_whole: calls are given when they are complete, and a broken one is text; else their arguments are given as they
    come, from where a call is certain, and one that breaks off is what was given of it. By the strict rule only the end
    makes a call certain, so without is_whole it is for answers that a grammar sees to.
    """

    def __init__(
        self, names: Collection[str] | None = None, *, is_strict: bool = False, is_whole: bool = False
    ) -> None:
        self._rules = CallRules(None if names is None else frozenset(names), is_strict, is_whole)
        self._pattern, self._beginnings = _STRICT if is_strict else _LOOSE
        self._marks = CodeMarks()
        self._calls: _OpenCalls | None = None
        self._blocks: list[tuple[str, list[CallPart]]] = []  # calls if nothing else follows, and their text
        self._held = ""  # may be the beginning of a call, or white space before one
        self._is_blank = True  # only white space was read since the last call, and is held
        self._follows_call = False
        self._may_be_bare = not is_strict and names is not None  # the whole answer may be a call
        self._parts: list[Part] = []

    def push(self, text: str) -> list[Part]:
        """The parts that are certain with the next piece of the answer."""
        self._read(text)
        return self._take_parts()

    def flush(self) -> list[Part]:
        """What was held back, when the answer ends: a call that isn't complete is text."""
        while self._calls is not None:
            try:
                rest = self._calls.reader.end()
            except NotACallError:
                self._read(self._give_up(self._calls))
            else:
                self._read(self._close(self._calls, rest))
        if self._blocks and not self._held.strip(BLANKS):
            self._parts += itertools.chain.from_iterable(parts for _, parts in self._blocks)
            self._blocks, self._follows_call = [], True
        if self._held.strip(BLANKS) or not (self._is_blank and self._follows_call):
            self._show(self._held)
        self._held = ""
        return self._take_parts()

    def _read(self, text: str) -> None:
        while text:
            text = self._read_text(text) if self._calls is None else self._read_calls(self._calls, text)

    def _read_text(self, text: str) -> str:
        """Reads text up to a call. Returns what comes after the call's opening."""
        text, self._held = self._held + text, ""
        if self._may_be_bare and (found := text.lstrip(BLANKS)):
            self._may_be_bare = False
            if found[0] in "{[":
                self._open(text[: len(text) - len(found)], "")
                return found
        line_break = "\n" * self._marks.is_at_line_start  # as before any other line, for fences
        match = self._pattern.search(line_break + text)
        if match is None:
            cut = max(0, len(text) - self._possible_start(line_break + text))
            self._held = text[self._cut(text, cut) :]
            self._show(text[: len(text) - len(self._held)])
            return ""
        opening, end = match.group().lstrip("\n"), match.end() - len(line_break)
        before, after = text[: end - len(opening)], text[end:]
        if not self._rules.is_strict and self._marks.after(before).is_in_code:
            end -= _line_break(opening)  # which may be the one before a call
            self._show(text[:end])
            return text[end:]
        cut = self._cut(before, len(before) - _line_break(before))
        self._show(before[:cut])
        self._open(before[cut:], opening)
        return after

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of `text` that begins an opening or the line break before one."""
        return next((size for size in range(_LONGEST, 0, -1) if text[-size:] in self._beginnings), 0)

    def _cut(self, text: str, size: int) -> int:
        """How much of the first `size` characters can be shown: white space after a call or at the beginning only with
        what follows it."""
        return 0 if self._is_blank and not text[:size].strip(BLANKS) else size

    def _open(self, gap: str, opening: str) -> None:
        has_tag = opening in _TAGS
        rules = self._rules if has_tag else dataclasses.replace(self._rules, is_whole=True)
        closing = _TAGS.get(opening, FENCE if opening else "")
        self._calls = _OpenCalls(gap + opening, has_tag, CallReader(rules, closing, has_tag=has_tag))

    def _read_calls(self, calls: _OpenCalls, text: str) -> str:
        """Reads calls. Returns what comes after them, or all of it if there are none."""
        try:
            rest = calls.reader.push(text)
        except NotACallError:
            return self._give_up(calls)
        self._give(calls)
        return "" if rest is None else self._close(calls, rest)

    def _give(self, calls: _OpenCalls) -> None:
        if calls.has_tag and calls.reader.parts:
            self._show_blocks()
            self._parts += calls.reader.parts
            calls.reader.parts = []

    def _close(self, calls: _OpenCalls, rest: str) -> str:
        """Behind calls. Returns what comes there."""
        self._give(calls)
        self._calls, self._is_blank = None, True
        if calls.has_tag:
            self._follows_call, self._marks = True, CodeMarks()
        else:
            read = calls.opening + calls.reader.text
            self._blocks.append((read.removesuffix(rest), calls.reader.parts))
        return rest

    def _give_up(self, calls: _OpenCalls) -> str:
        """It is no call: the opening becomes text, and what came after it is read again."""
        self._calls = None
        self._show(calls.opening)
        return calls.reader.text

    def _show(self, text: str) -> None:
        if text:
            self._show_blocks()
            self._marks.push(text)
            self._is_blank = False
            self._parts.append(text)

    def _show_blocks(self) -> None:
        """What follows them makes them text."""
        for text, _ in self._blocks:
            self._marks.push(text)
            self._is_blank = False
            self._parts.append(text)
        self._blocks = []

    def _take_parts(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts


def _line_break(text: str) -> int:
    """Length of the one at the end."""
    return next((len(each) for each in _LINE_BREAKS if text.endswith(each)), 0)


@dataclass(frozen=True)
class _OpenCalls:
    """What may be calls. opening: before them, with the white space that calls swallow."""

    opening: str
    has_tag: bool
    reader: CallReader
