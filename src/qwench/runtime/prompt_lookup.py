"""Guesses what comes next in a text by looking up what followed the same tokens before: prompt lookup.

Each new token is compared with what would have been guessed for it, whether or not that guess was computed. So the
odds of the next guess are known for free, and text that doesn't repeat itself costs a look into a dict per token.
Knows nothing of steps or of what a guess costs: the scheduler, its only caller, decides which are worth computing.
"""

from __future__ import annotations

from collections.abc import Iterator

from qwench.targets.target import Int32

# Lengths that are looked up, longest first. With 3 or 5 beside them nothing changed by more than 1 %; single tokens
# won 5 % on code and lost 2 % on prose (replayed texts, further tokens at 0.05 to 0.15 of a step each).
_NGRAM_SIZES = (4, 2)
_LONGEST_MATCH = 16  # how far back a match is measured
_RESUMED_MATCH = 8  # one this long goes on after a wrong guess: an edit may have replaced just that token
# How often a guess is right, by bit_length of the match: 0 (resumed), 1, 2 or 3 tokens, 4 to 7, 8 to 15, more. About
# what replayed texts had.
_FIRST_ODDS = (0.3, 0.5, 0.2, 0.4, 0.7, 0.9)
_LEARNING_RATE = 0.1
_TOKEN_BYTES = 4


class PromptLookup:
    """The guesses for one sequence, whose tokens lie in `tokens` [max_len] int32; those once known never change."""

    def __init__(self, tokens: Int32) -> None:
        self._tokens = tokens
        self._num_seen = 0
        self._next_of: dict[bytes, int] = {}  # n-gram -> the position after its latest occurrence but the very last
        self._source: int | None = None  # where the guess for the next token is
        self._match_len = 0  # tokens before `_source` that equal the last ones
        self._odds = list(_FIRST_ODDS)

    def propose(self, num_tokens: int, limit: int) -> Iterator[tuple[int, float]]:
        """Up to `limit` guesses for what follows the first `num_tokens` tokens: each a token, and the probability that
        it and all before it are right. None without a match. `num_tokens` never falls from call to call."""
        self._catch_up(num_tokens)
        if self._source is None:
            return
        guesses: list[int] = []
        probability = 1.0
        for i in range(limit):
            at = self._source + i
            # A text that goes in circles is its own continuation.
            guesses.append(int(self._tokens[at]) if at < num_tokens else guesses[at - num_tokens])
            probability *= self._odds[_odds_index(self._match_len + i)]
            yield guesses[-1], probability

    def _catch_up(self, num_tokens: int) -> None:
        if self._num_seen == 0:
            self._remember(0, num_tokens)
            self._find_match(num_tokens)
        else:
            for at in range(self._num_seen, num_tokens):
                resumed = self._judge(at)
                self._remember(at, at + 1)
                if self._source is None:
                    self._find_match(at + 1)
                if self._source is None:
                    self._source, self._match_len = resumed, 0
        self._num_seen = num_tokens

    def _judge(self, at: int) -> int | None:
        """Was the guess for position `at` right? A match goes on as long as it is. Returns where a long one that ended
        here could be resumed."""
        if self._source is None:
            return None
        is_right = bool(self._tokens[self._source] == self._tokens[at])
        index = _odds_index(self._match_len)
        self._odds[index] += _LEARNING_RATE * (is_right - self._odds[index])
        following = self._source + 1
        if is_right:
            self._source, self._match_len = following, self._match_len + 1
            return None
        self._source = None
        return following if self._match_len >= _RESUMED_MATCH else None

    def _remember(self, start: int, stop: int) -> None:
        """The n-grams that end just before positions [start, stop)."""
        first = max(start - _NGRAM_SIZES[0], 0)
        raw = self._tokens[first:stop].tobytes()
        for at in range(max(start, 1), stop):
            end = (at - first) * _TOKEN_BYTES
            for size in _NGRAM_SIZES:
                if size <= at:
                    self._next_of[raw[end - size * _TOKEN_BYTES : end]] = at

    def _find_match(self, end: int) -> None:
        """Where the last tokens before `end` occurred before, by the longest n-gram known."""
        tail = self._tokens[max(end - _NGRAM_SIZES[0], 0) : end].tobytes()
        for size in _NGRAM_SIZES:
            source = self._next_of.get(tail[-size * _TOKEN_BYTES :]) if size <= end else None
            if source is not None:
                self._source, self._match_len = source, self._measure(source, end, size)
                return

    def _measure(self, source: int, end: int, known: int) -> int:
        """How many tokens before `source` equal those before `end`, up to `_LONGEST_MATCH`; `known` are known to."""
        tokens, length = self._tokens, known
        while length < min(source, _LONGEST_MATCH) and tokens[source - 1 - length] == tokens[end - 1 - length]:
            length += 1
        return length


def _odds_index(match_len: int) -> int:
    return min(match_len.bit_length(), len(_FIRST_ODDS) - 1)
