"""An answer as it comes: its text on stdout, and on stderr the thought before it. Used by run and chat."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwench.text.generation import Delta

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class AnswerPrinter:
    """Prints the deltas of one answer. A pipe gets the answer alone, and a terminal the thought in dim letters."""

    def __init__(self) -> None:
        self._dim, self._plain = (DIM, PLAIN) if sys.stderr.isatty() else ("", "")
        self._is_thinking = False

    def show(self, delta: Delta) -> None:
        if delta.reasoning:
            self._say(delta.reasoning if self._is_thinking else self._dim + delta.reasoning)
            self._is_thinking = True
        if delta.text:
            self._end_thought()
            write(delta.text)

    def end(self) -> None:
        if self._is_thinking:
            self._say(
                f"{self._plain}\n[the answer ended within its thought; --max-new-tokens gives it more, "
                "--max-thinking-tokens ends the thought]"
            )
        write("\n")

    def _end_thought(self) -> None:
        if self._is_thinking:
            self._say(f"{self._plain}\n\n")
            self._is_thinking = False

    @staticmethod
    def _say(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def write(text: str) -> None:
    """Text to stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
