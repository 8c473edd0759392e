"""How long a step takes by how many tokens it computes, learned from the steps as they happen.

What guesses cost differs between models, machines and loads, so nothing here is a constant of one of them. A step's
time is disturbed: the first ones find nothing in the caches, and other processes take the processor for milliseconds.
Nothing makes a step faster than it is. So the fastest of the first steps counts, and a later one no more than a little
above what was expected, unless those before it were slow as well. Knows neither engines nor drafts. Called by
`speculation.py`.
"""

from __future__ import annotations

_MOST_TOKENS = 64  # in a step that counts: larger ones are prompts, whose tokens cost less each
_FORGETTING = 0.97  # weight of a step after the next one: some thirty steps count
_FIRST_SHARE = 0.12  # of a step of one token that another one costs, until steps have told
_BELIEF = 0.2  # weight of what is known of a further token's cost, in tokens squared
_FEW = 3  # steps, before which nothing is known
_SURPRISE = 1.1  # so many times what was expected is a disturbance until it is repeated


class StepCosts:
    """A line through the steps so far, seconds over tokens: least squares in which older steps count less."""

    def __init__(self) -> None:
        self._num_seen = 0
        self._weight = self._tokens = self._tokens_squared = self._seconds = self._products = 0.0
        self._base, self._slope = 0.0, 0.0
        self._share = _FIRST_SHARE  # what the slope is of a step of one token, so far as is known
        self._num_slow = 0  # of the last steps, one after another

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
        if self._num_seen > _FEW:
            self._add(num_tokens, self._calmed(num_tokens, seconds))
            return
        shape = 1 + _FIRST_SHARE * (num_tokens - 1)
        fastest = seconds / shape if self._num_seen == 1 else min(seconds / shape, self.seconds(1))
        self._weight = self._tokens = self._tokens_squared = self._seconds = self._products = 0.0
        self._add(num_tokens, fastest * shape)

    def _calmed(self, num_tokens: int, seconds: float) -> float:
        """No further above what was expected than one step may be; further with each in a row that was."""
        expected = self.seconds(num_tokens)
        bound = expected * _SURPRISE ** (1 + self._num_slow)
        self._num_slow = self._num_slow + 1 if seconds > _SURPRISE * expected else 0
        return min(seconds, bound)

    def _add(self, num_tokens: int, seconds: float) -> None:
        self._weight = self._weight * _FORGETTING + 1
        self._tokens = self._tokens * _FORGETTING + num_tokens
        self._tokens_squared = self._tokens_squared * _FORGETTING + num_tokens * num_tokens
        self._seconds = self._seconds * _FORGETTING + seconds
        self._products = self._products * _FORGETTING + num_tokens * seconds
        tokens, mean = self._tokens / self._weight, self._seconds / self._weight
        variance = self._tokens_squared / self._weight - tokens * tokens
        covariance = self._products / self._weight - tokens * mean
        believed = self._share * mean / (1 + self._share * (tokens - 1))
        slope = (covariance + _BELIEF * believed) / (variance + _BELIEF)
        self._slope = min(max(slope, 0.0), mean / tokens)
        self._base = mean - self._slope * tokens
        self._share = self._slope / max(self.seconds(1), 1e-9)
