"""How long a step takes by how many tokens it computes, learned from the steps as they happen.

What guesses cost differs between models, machines and loads, so nothing here is a constant of one of them. Knows
neither engines nor drafts. Called by `runtime/speculation.py`.
"""

from __future__ import annotations

_MOST_TOKENS = 64  # in a step that counts: larger ones are prompts, whose tokens cost less each
_FORGETTING = 0.97  # weight of a step after the next one: some thirty steps count
_FIRST_SHARE = 0.1  # of a step of one token that another one costs, until steps have told
_FIRST_WEIGHT = 0.2  # of that assumption, in tokens squared
_FEW = 3  # steps, before which nothing is known
_SURPRISE = 1.5  # a step that takes longer than so many times what was expected was interrupted


class StepCosts:
    """A line through the steps so far, seconds over tokens: least squares in which older steps count less."""

    def __init__(self) -> None:
        self._num_seen = 0
        self._weight = self._tokens = self._tokens_squared = self._seconds = self._products = 0.0
        self._base, self._slope = 0.0, 0.0

    @property
    def is_known(self) -> bool:
        return self._num_seen >= _FEW

    @property
    def slope(self) -> float:
        """Seconds of one more token."""
        return self._slope

    def seconds(self, num_tokens: float) -> float:
        """Of a step."""
        return self._base + self._slope * num_tokens

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A step has taken so long."""
        if num_tokens > _MOST_TOKENS:
            return
        self._num_seen += 1
        if self._num_seen > 1:
            seconds = min(seconds, _SURPRISE * self.seconds(num_tokens))
        self._weight = self._weight * _FORGETTING + 1
        self._tokens = self._tokens * _FORGETTING + num_tokens
        self._tokens_squared = self._tokens_squared * _FORGETTING + num_tokens * num_tokens
        self._seconds = self._seconds * _FORGETTING + seconds
        self._products = self._products * _FORGETTING + num_tokens * seconds
        tokens, mean = self._tokens / self._weight, self._seconds / self._weight
        variance = self._tokens_squared / self._weight - tokens * tokens
        covariance = self._products / self._weight - tokens * mean
        first = _FIRST_SHARE * mean / (1 + _FIRST_SHARE * (tokens - 1))
        slope = (covariance + _FIRST_WEIGHT * first) / (variance + _FIRST_WEIGHT)
        self._slope = min(max(slope, 0.0), mean / tokens)
        self._base = mean - self._slope * tokens
