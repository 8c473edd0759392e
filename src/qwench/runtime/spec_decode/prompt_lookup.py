"""Prompt lookup (n-gram speculation): draft tokens are those that followed the same n-gram earlier in the sequence.

Each new token is compared with the draft that there was or would have been for it, so the acceptance rate is known
without computing drafts, and text that doesn't repeat itself costs one dict lookup per token. The scheduler, its only
caller, decides which drafts are worth computing.
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
_RESUMED_MATCH = 8  # one this long is resumed after a rejected draft: an edit may have replaced just that token
# Initial acceptance rates, by bit_length of the match: 0 (resumed), 1, 2 or 3 tokens, 4 to 7, 8 to 15, more. About
# those of replayed texts.
_FIRST_ODDS = (0.3, 0.5, 0.2, 0.4, 0.7, 0.9)
_LEARNING_RATE = 0.1


class PromptLookup:
    """The drafts for one sequence, whose tokens are in `tokens` [max_len] int32; known ones never change."""

    def __init__(self, tokens: Int32) -> None:
        self._tokens = tokens
        self._num_seen = 0
        self._last = 0  # the last four tokens as one number
        self._after_long: dict[int, int] = {}  # four tokens -> the position after their latest occurrence but the last
        self._after_short: dict[int, int] = {}
        self._source: int | None = None  # position of the draft for the next token
        self._match_len = 0  # tokens before `_source` that equal the last ones
        self._odds = list(_FIRST_ODDS)

    def has_draft(self, num_tokens: int) -> bool:
        """Whether there is a draft for what follows the first `num_tokens` tokens; num_tokens never decreases."""
        if num_tokens > self._num_seen:
            self._catch_up(num_tokens)
        return self._source is not None

    def propose(self, num_tokens: int, limit: int) -> Iterator[tuple[int, float]]:
        """Up to `limit` drafts for what follows the first `num_tokens` tokens: each a token, and the probability that
        it and all before it are accepted. None without a match."""
        if not self.has_draft(num_tokens):
            return
        assert self._source is not None
        drafts: list[int] = []
        probability = 1.0
        for i in range(limit):
            at = self._source + i
            # Beyond the known tokens the drafts repeat themselves, with the distance of the match as period.
            drafts.append(int(self._tokens[at]) if at < num_tokens else drafts[at - num_tokens])
            probability *= self._odds[_odds_index(self._match_len + i)]
            yield drafts[-1], probability

    def _catch_up(self, num_tokens: int) -> None:
        if self._num_seen == 0:
            for token in self._tokens[:num_tokens].tolist():
                self._remember(token)
            self._find_match()
        else:
            for at in range(self._num_seen, num_tokens):
                token = int(self._tokens[at])
                resumed = None if self._source is None else self._compare(token, self._source)
                self._remember(token)
                if self._source is None:
                    self._find_match()
                if self._source is None:
                    self._source, self._match_len = resumed, 0

    def _compare(self, token: int, source: int) -> int | None:
        """Compares the new token with its draft at `source` and updates the acceptance rate. The match continues if
        they are equal; else returns where to resume it, if it was long."""
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
