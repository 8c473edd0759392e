"""Incremental JSON scanner: reads one object in streamed text, or raises once it can't be one any more.

Strict, it takes RFC 8259 and nothing else: no NaN, no comments, no trailing commas, no bare control characters. Loose,
it also takes what models write for JSON, and gives JSON for it: single quotes, raw line breaks in strings, escapes that
JSON doesn't have, Python's True, False and None, a comma too many.

Each character is read once, however the text is cut into pieces. Builds no values, only keeps those of the outermost
object as they are written. Called by call_reader.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

BLANKS = " \t\r\n"
_BLANK = re.compile(r"[ \t\r\n]*")
_PLAIN = {  # of a string, up to what needs a closer look
    '"': re.compile(r'[^"\\\x00-\x1f]*'),
    "'": re.compile(r"""[^"'\\\x00-\x1f]*"""),
}
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")
_VALID_SCALAR = re.compile(r"true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_PYTHON = {"True": "true", "False": "false", "None": "null"}
_CLOSING = {"{": "}", "[": "]"}


class NotJsonError(ValueError):
    """The text so far can't be the beginning of a JSON object. at: the index in the last piece where that shows."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.at = at


@dataclass
class Member:
    """Of the outermost object. pieces: of its value, as JSON, as far as it was read."""

    key: str
    pieces: list[str] = field(default_factory=list)
    is_over: bool = False

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class ObjectScanner:
    """Scans one object. members: in their order, the last one perhaps unfinished."""

    def __init__(self, *, is_loose: bool = False) -> None:
        self.members: list[Member] = []
        self._is_loose = is_loose
        self._next: Callable[[str, int], int] = self._begin
        self._open: list[str] = []  # brackets
        self._sink: list[str] = []  # where JSON is written: a member's pieces, a key of the object, or nowhere
        self._in_key, self._quote = False, '"'
        self._hex_digits, self._scalar, self._comma = 0, "", ""
        self._is_over = False

    @property
    def unwritten(self) -> str:
        """What was read and is in no member yet: a comma with blanks behind it, or a number."""
        return self._comma + self._scalar

    def push(self, text: str) -> int | None:
        """The index in `text` behind the object's end; None: it goes on. Raises NotJsonError."""
        at = 0
        while at < len(text) and not self._is_over:
            at = self._next(text, at)
        return at if self._is_over else None

    # The states: each reads a part of text[at:] and returns where that ends.

    def _begin(self, text: str, at: int) -> int:
        at, char = self._significant(text, at)
        if char and char != "{":
            raise NotJsonError(at)
        return self._open_bracket(at, char) if char else at

    def _first_key(self, text: str, at: int) -> int:
        at, char = self._significant(text, at)
        return self._close_bracket(at, char) if char == "}" else self._begin_key(at, char)

    def _next_key(self, text: str, at: int) -> int:
        at, char = self._significant(text, at)
        return self._close_after_comma(at, char) if char == "}" else self._begin_key(at, char)

    def _begin_key(self, at: int, char: str) -> int:
        if not char:
            return at
        if not self._is_quote(char):
            raise NotJsonError(at)
        self._in_key = True
        if len(self._open) == 1:
            self._comma, self._sink = "", []
        return self._begin_string(at, char)

    def _colon(self, text: str, at: int) -> int:
        at, char = self._significant(text, at)
        if not char:
            return at
        if char != ":":
            raise NotJsonError(at)
        self._write(char)
        self._next = self._value
        return at + 1

    def _first_value(self, text: str, at: int) -> int:
        at, char = self._significant(text, at)
        return self._close_bracket(at, char) if char == "]" else self._begin_value(at, char)

    def _next_value(self, text: str, at: int) -> int:
        at, char = self._significant(text, at)
        return self._close_after_comma(at, char) if char == "]" else self._begin_value(at, char)

    def _value(self, text: str, at: int) -> int:
        return self._begin_value(*self._significant(text, at))

    def _begin_value(self, at: int, char: str) -> int:
        if not char:
            return at
        if len(self._open) == 1:
            self._sink = self.members[-1].pieces
        if self._is_quote(char):
            return self._begin_string(at, char)
        if char in "{[":
            return self._open_bracket(at, char)
        self._write("")
        self._next = self._rest_of_scalar
        return at

    def _begin_string(self, at: int, quote: str) -> int:
        self._write('"')
        self._quote, self._next = quote, self._string
        return at + 1

    def _string(self, text: str, at: int) -> int:
        match = _PLAIN[self._quote].match(text, at)
        assert match is not None
        self._write(match.group())
        at = match.end()
        if at == len(text):
            return at
        char = text[at]
        if char == "\\":
            self._next = self._escape
        elif char == self._quote:
            self._end_string()
        elif char == '"' or self._is_loose:
            self._write(json.dumps(char)[1:-1])
        else:
            raise NotJsonError(at)
        return at + 1

    def _end_string(self) -> None:
        self._write('"')
        if not self._in_key:
            self._end_value()
            return
        self._in_key, self._next = False, self._colon
        if len(self._open) == 1:
            self.members.append(Member(json.loads("".join(self._sink))))
            self._sink = []

    def _escape(self, text: str, at: int) -> int:
        char, self._next = text[at], self._string
        if char == "u":
            self._hex_digits, self._next = 4, self._hex
        elif char == "'" and self._is_loose:
            self._write("'")
            return at + 1
        elif char not in '"\\/bfnrt':
            if not self._is_loose:
                raise NotJsonError(at)
            self._write("\\\\")  # the backslash of a pattern or a path, which was to be doubled
            return at
        self._write("\\" + char)
        return at + 1

    def _hex(self, text: str, at: int) -> int:
        if text[at] not in "0123456789abcdefABCDEF":
            raise NotJsonError(at)
        self._write(text[at])
        self._hex_digits -= 1
        if self._hex_digits == 0:
            self._next = self._string
        return at + 1

    def _rest_of_scalar(self, text: str, at: int) -> int:
        match = _SCALAR.match(text, at)
        assert match is not None
        self._scalar += match.group()
        at = match.end()
        if at < len(text):
            scalar = _PYTHON.get(self._scalar, self._scalar) if self._is_loose else self._scalar
            if not _VALID_SCALAR.fullmatch(scalar):
                raise NotJsonError(at)
            self._scalar = ""
            self._write(scalar)
            self._end_value()
        return at

    def _after_value(self, text: str, at: int) -> int:
        at, char = self._significant(text, at)
        if not char:
            return at
        if char == ",":
            self._comma, self._next = ",", self._next_key if self._open[-1] == "{" else self._next_value
            return at + 1
        if char != _CLOSING[self._open[-1]]:
            raise NotJsonError(at)
        return self._close_bracket(at, char)

    def _open_bracket(self, at: int, char: str) -> int:
        self._write(char)
        self._open.append(char)
        self._next = self._first_key if char == "{" else self._first_value
        return at + 1

    def _close_after_comma(self, at: int, char: str) -> int:
        if not self._is_loose:
            raise NotJsonError(at)
        self._comma = self._comma[1:]
        return self._close_bracket(at, char)

    def _close_bracket(self, at: int, char: str) -> int:
        self._write(char)
        self._open.pop()
        self._is_over = not self._open
        self._end_value()
        return at + 1

    def _end_value(self) -> None:
        if len(self._open) == 1:
            self.members[-1].is_over = True
            self._sink = []
        self._next = self._after_value

    def _is_quote(self, char: str) -> bool:
        return char == '"' or (char == "'" and self._is_loose)

    def _significant(self, text: str, at: int) -> tuple[int, str]:
        """Behind white space: where, and the character there, "" at the end of the piece."""
        match = _BLANK.match(text, at)
        assert match is not None
        if self._comma:
            self._comma += match.group()
        elif len(self._open) > 1:
            self._sink.append(match.group())
        return match.end(), text[match.end() : match.end() + 1]

    def _write(self, text: str) -> None:
        if text := self._comma + text:
            self._sink.append(text)
        self._comma = ""
