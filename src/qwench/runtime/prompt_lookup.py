"""Guesses what comes next in a text by looking up what followed the same tokens before: prompt lookup.

Each new token is compared with what would have been guessed for it, whether or not that guess was computed. So the
odds of the next guess are known for free, and text that doesn't repeat itself costs a look into a dict per token.
Knows nothing of steps or of what a guess costs: the scheduler, its only caller, decides which are worth computing.
"""

from __future__ import annotations

from collections.abc import Iterator

from qwench.targets.target import Int32

# The last four tokens are looked up, else two. With three or five beside them nothing changed by more than 1 %; single
# tokens won 5 % on code and lost 2 % on prose (replayed texts, further tokens at 0.05 to 0.15 of a step each).
_LONG, _SHORT = 4, 2
_TOKEN_BITS = 32
_LONG_MASK, _SHORT_MASK = (1 << _LONG * _TOKEN_BITS) - 1, (1 << _SHORT * _TOKEN_BITS) - 1
_LONGEST_MATCH = 16  # how far back a match is measured
_RESUMED_MATCH = 8  # one this long goes on after a wrong guess: an edit may have replaced just that token
# How often a guess is right, by bit_length of the match: 0 (resumed), 1, 2 or 3 tokens, 4 to 7, 8 to 15, more. About
# what replayed texts had.
_FIRST_ODDS = (0.3, 0.5, 0.2, 0.4, 0.7, 0.9)
_LEARNING_RATE = 0.1


class PromptLookup:
    """The guesses for one sequence, whose tokens lie in `tokens` [max_len] int32; those once known never change."""

    def __init__(self, tokens: Int32) -> None:
        self._tokens = tokens
        self._num_seen = 0
        self._last = 0  # the last four tokens as one number
        self._after_long: dict[int, int] = {}  # four tokens -> the position after their latest occurrence but the last
        self._after_short: dict[int, int] = {}
        self._source: int | None = None  # where the guess for the next token is
        self._match_len = 0  # tokens before `_source` that equal the last ones
        self._odds = list(_FIRST_ODDS)

    def has_guess(self, num_tokens: int) -> bool:
        """Whether there is a guess for what follows the first `num_tokens` tokens, which never fall from call to call.

        Cheap: this is all that text costs which doesn't repeat itself.
        """
        if num_tokens > self._num_seen:
            self._catch_up(num_tokens)
        return self._source is not None

    def propose(self, num_tokens: int, limit: int) -> Iterator[tuple[int, float]]:
        """Up to `limit` guesses for what follows the first `num_tokens` tokens: each a token, and the probability that
        it and all before it are right. None without a match."""
        if not self.has_guess(num_tokens):
            return
        assert self._source is not None
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
            for token in self._tokens[:num_tokens].tolist():
                self._remember(token)
            self._find_match()
        else:
            for at in range(self._num_seen, num_tokens):
                token = int(self._tokens[at])
                resumed = None if self._source is None else self._judge(token, self._source)
                self._remember(token)
                if self._source is None:
                    self._find_match()
                if self._source is None:
                    self._source, self._match_len = resumed, 0

    def _judge(self, token: int, source: int) -> int | None:
        """Was the next token guessed right, from `source`? A match goes on as long as it is. Returns where a long one
        that ended here could be resumed."""
        is_right = bool(self._tokens[source] == token)
        index = _odds_index(self._match_len)
        self._odds[index] += _LEARNING_RATE * (is_right - self._odds[index])
        following = source + 1
        if is_right:
            self._source, self._match_len = following, self._match_len + 1
            return None
        self._source = None
        return following if self._match_len >= _RESUMED_MATCH else None

    def _remember(self, token: int) -> None:
        """The tokens so far are followed by `token`."""
        at = self._num_seen
        if at >= _SHORT:
            self._after_short[self._last & _SHORT_MASK] = at
            if at >= _LONG:
                self._after_long[self._last] = at
        self._last = (self._last << _TOKEN_BITS | token) & _LONG_MASK
        self._num_seen = at + 1

    def _find_match(self) -> None:
        """Where the last tokens occurred before: the last four, or else the last two."""
        source, known = self._after_long.get(self._last), _LONG
        if source is None:
            source, known = self._after_short.get(self._last & _SHORT_MASK), _SHORT
        if source is not None:
            self._source, self._match_len = source, self._measure(source, known)

    def _measure(self, source: int, known: int) -> int:
        """How many tokens before `source` equal the last ones, up to `_LONGEST_MATCH`; `known` are known to."""
        tokens, end, length = self._tokens, self._num_seen, known
        while length < min(source, _LONGEST_MATCH) and tokens[source - 1 - length] == tokens[end - 1 - length]:
            length += 1
        return length


def _odds_index(match_len: int) -> int:
    return min(match_len.bit_length(), len(_FIRST_ODDS) - 1)
