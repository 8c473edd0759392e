"""Incremental JSON scanner: finds the end of one object in streamed text, or raises once it can't be JSON any more.

Strict RFC 8259: no NaN, no comments, no trailing commas, no bare control characters. Each character is read once,
however the text is cut into pieces. Builds no values, only finds those of the outermost object. Called by
tool_calls.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

BLANKS = " \t\r\n"
_BLANK = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')  # of a string, up to what needs a closer look
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")
_VALID_SCALAR = re.compile(r"true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_CLOSING = {"{": "}", "[": "]"}


class NotJsonError(ValueError):
    """The text so far can't be the beginning of a JSON object."""


class ObjectScanner:
    """Scans one object. Doesn't keep the text: the caller does."""

    def __init__(self) -> None:
        self._next: Callable[[str, int], int] = self._begin
        self._open: list[str] = []  # brackets
        self._offset = 0  # of the piece in the whole text
        self._in_key = False
        self._string_start = self._value_start = 0
        self._key = (0, 0)
        self._hex_digits, self._scalar = 0, ""
        self._members: list[tuple[tuple[int, int], tuple[int, int]]] = []
        self._is_over = False

    def push(self, text: str) -> int | None:
        """The index in `text` behind the object's end; None: it goes on. Raises NotJsonError."""
        at = 0
        while at < len(text) and not self._is_over:
            at = self._next(text, at)
        self._offset += at
        return at if self._is_over else None

    def members(self, text: str) -> dict[str, str]:
        """Name -> value as it is written, of the outermost object once that is over; `text`: all that was pushed. Of
        several with one name the last counts, as for json.loads."""
        return {json.loads(text[slice(*key)]): text[slice(*value)] for key, value in self._members}

    # The states: each reads a part of text[at:] and returns where that ends.

    def _begin(self, text: str, at: int) -> int:
        at, char = self._significant(text, at)
        if char and char != "{":
            raise NotJsonError
        return self._open_bracket(at, char) if char else at

    def _first_key(self, text: str, at: int) -> int:
        at, char = self._significant(text, at)
        return self._close_bracket(at) if char == "}" else self._begin_key(at, char)

    def _next_key(self, text: str, at: int) -> int:
        return self._begin_key(*self._significant(text, at))

    def _begin_key(self, at: int, char: str) -> int:
        if not char:
            return at
        if char != '"':
            raise NotJsonError
        self._in_key = True
        return self._begin_string(at)

    def _colon(self, text: str, at: int) -> int:
        at, char = self._significant(text, at)
        if not char:
            return at
        if char != ":":
            raise NotJsonError
        self._next = self._value
        return at + 1

    def _first_value(self, text: str, at: int) -> int:
        at, char = self._significant(text, at)
        return self._close_bracket(at) if char == "]" else self._begin_value(at, char)

    def _value(self, text: str, at: int) -> int:
        return self._begin_value(*self._significant(text, at))

    def _begin_value(self, at: int, char: str) -> int:
        if not char:
            return at
        if len(self._open) == 1:
            self._value_start = self._offset + at
        if char == '"':
            return self._begin_string(at)
        if char in "{[":
            return self._open_bracket(at, char)
        self._scalar, self._next = "", self._rest_of_scalar
        return at

    def _begin_string(self, at: int) -> int:
        self._string_start, self._next = self._offset + at, self._string
        return at + 1

    def _string(self, text: str, at: int) -> int:
        match = _PLAIN.match(text, at)
        assert match is not None
        at = match.end()
        if at == len(text):
            return at
        if text[at] == "\\":
            self._next = self._escape
        elif text[at] != '"':
            raise NotJsonError
        elif self._in_key:
            self._in_key, self._next = False, self._colon
            if len(self._open) == 1:
                self._key = (self._string_start, self._offset + at + 1)
        else:
            self._end_value(at + 1)
        return at + 1

    def _escape(self, text: str, at: int) -> int:
        if text[at] == "u":
            self._hex_digits, self._next = 4, self._hex
        elif text[at] in '"\\/bfnrt':
            self._next = self._string
        else:
            raise NotJsonError
        return at + 1

    def _hex(self, text: str, at: int) -> int:
        if text[at] not in "0123456789abcdefABCDEF":
            raise NotJsonError
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
            if not _VALID_SCALAR.fullmatch(self._scalar):
                raise NotJsonError
            self._end_value(at)
        return at

    def _after_value(self, text: str, at: int) -> int:
        at, char = self._significant(text, at)
        if not char:
            return at
        if char == ",":
            self._next = self._next_key if self._open[-1] == "{" else self._value
            return at + 1
        if char != _CLOSING[self._open[-1]]:
            raise NotJsonError
        return self._close_bracket(at)

    def _open_bracket(self, at: int, char: str) -> int:
        self._open.append(char)
        self._next = self._first_key if char == "{" else self._first_value
        return at + 1

    def _close_bracket(self, at: int) -> int:
        self._open.pop()
        self._is_over = not self._open
        self._end_value(at + 1)
        return at + 1

    def _end_value(self, at: int) -> None:
        if len(self._open) == 1:
            self._members.append((self._key, (self._value_start, self._offset + at)))
        self._next = self._after_value

    @staticmethod
    def _significant(text: str, at: int) -> tuple[int, str]:
        """Behind white space: where, and the character there, "" at the end of the piece."""
        match = _BLANK.match(text, at)
        assert match is not None
        return match.end(), text[match.end() : match.end() + 1]
