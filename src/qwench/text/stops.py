"""Stop strings in streamed text: finds them across the borders of pieces, and holds back what may become one.

Knows nothing of tokens. The result doesn't depend on how the text was cut: the match that is complete first ends the
text (the longest, if several are complete at once).
"""

from __future__ import annotations

from collections.abc import Sequence


class StopChecker:
    """Watches one text. `matched` is the stop string that ended it, or None."""

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops, self._include = tuple(stops), include
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that can be shown now. After a match: what comes before it (and itself, if included)."""
        assert self.matched is None
        if not self._stops:
            return text
        text = self._held + text
        hits = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if hits:
            end, start, self.matched = min(hits)
            self._held = ""
            return text[: end if self._include else start]
        cut = len(text) - possible_start(text, self._stops)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """What was held back, when the text ends without a match."""
        held, self._held = self._held, ""
        return held


def possible_start(text: str, strings: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of `strings`, none of which is in it."""
    longest = max(map(len, strings), default=0)
    for size in range(min(longest - 1, len(text)), 0, -1):
        if any(string.startswith(text[-size:]) for string in strings):
            return size
    return 0
