"""Whether a place in streamed Markdown lies in code, between fences or backticks. Called by tool_calls.py."""

from __future__ import annotations

import copy
import re

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_LINE_LENGTH = 256  # a longer line is no fence


class CodeMarks:
    """Follows a text. is_at_line_start: of the place behind it."""

    def __init__(self) -> None:
        self._fence = ""  # that is open
        self._line = ""
        self._num_backticks = 0  # in the line

    @property
    def is_at_line_start(self) -> bool:
        return not self._line

    def after(self, text: str) -> CodeMarks:
        """Of the place behind a further text."""
        marks = copy.copy(self)
        marks.push(text)
        return marks

    @property
    def is_in_code(self) -> bool:
        """After a fence that was opened, in the line too, or an odd number of backticks."""
        return bool(self._fence) or self._num_backticks % 2 == 1 or _FENCE.match(self._line) is not None

    def push(self, text: str) -> None:
        *lines, last = text.split("\n")
        for line in lines:
            self._add(line)
            self._end_line()
        self._add(last)

    def _add(self, text: str) -> None:
        self._line += text[: _LINE_LENGTH - len(self._line)]
        self._num_backticks += text.count("`")

    def _end_line(self) -> None:
        match = _FENCE.match(self._line)
        if match is not None:
            fence, rest = match[1], match[2].strip()
            if self._fence:
                if fence.startswith(self._fence) and not rest:
                    self._fence = ""
            elif not (fence[0] == "`" and "`" in rest):
                self._fence = fence
        self._line, self._num_backticks = "", 0
