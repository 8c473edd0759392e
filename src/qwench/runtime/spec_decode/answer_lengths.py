"""How long answers have been of late, and so how much of one is likely still to come.

A draft reads a prompt for the guesses of the whole answer, so somebody must say how long that will be. Knows neither
drafts nor costs. Kept by `speculation.py`.
"""

from __future__ import annotations

from collections import deque

_NUM_RECENT = 8
_USUAL_LENGTH = 64  # in tokens, of an answer like none of late


class AnswerLengths:
    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=_NUM_RECENT)

    def observe(self, num_tokens: int) -> None:
        """An answer has ended with so many tokens."""
        self._recent.append(num_tokens)

    def likely_left(self, num_tokens: int) -> int:
        """How many tokens an answer of so many will still get: as the shortest of the last ones that were longer, since
        only one in nine is shorter than eight others of its kind. If none was, it is as long again, or as usual."""
        longer = [length for length in self._recent if length > num_tokens]
        return min(longer, default=max(_USUAL_LENGTH, 2 * num_tokens)) - num_tokens
