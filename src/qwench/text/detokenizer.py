"""Tokens -> text while they are generated: never half a character, and nothing that may be part of a stop string.

`Detokenizer` turns tokens into text: its pieces joined, `flush` included, are exactly `Tokenizer.decode` of the ids.
`StopChecker` finds stop strings in that text, however it was cut into pieces: the match that is complete first ends the
text (the longest, if several are complete at once). Both cost the same per token however long the text is. Called by
`generation.py`.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence

from qwench.text.tokenizer import Tokenizer


class Detokenizer:
    """The text of one answer. kept: special tokens that are text all the same."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, kept: Collection[int] = ()) -> None:
        self._tokenizer, self._texts = tokenizer, tokenizer.texts
        self._skipped = tokenizer.special_ids.difference(kept) if skip_special_tokens else frozenset[int]()
        # "replace" gives one U+FFFD per broken sequence, as the tokenizers library does.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_open = False  # whether it holds a part of a character

    def push(self, token_id: int) -> str:
        """The text that this token completes; "" while a character is still open."""
        if token_id in self._skipped:
            return ""
        text = None if self._is_open else self._texts[token_id]
        if text is None:
            text = self._decoder.decode(self._tokenizer.token_bytes(token_id))
            self._is_open = bool(self._decoder.getstate()[0])
        return text

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed."""
        return self._decoder.decode(b"", final=True)


class StopChecker:
    """Watches one text. `matched` is the stop string that ended it, or None."""

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops, self._include = tuple(stops), include
        self._firsts = frozenset(stop[0] for stop in stops)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that can be shown now. After a match: what comes before it (and itself, if included)."""
        assert self.matched is None
        if not self._held and self._firsts.isdisjoint(text):  # most of the time
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
    longest = 0
    for string in strings:
        for size in range(min(len(string) - 1, len(text)), longest, -1):
            if text.endswith(string[:size]):
                longest = size
                break
    return longest
