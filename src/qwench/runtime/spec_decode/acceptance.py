"""How often a draft model's guesses are right: of each confidence, and all in all, where those of late count more.

What one request's were is its `Following`'s to know. Kept by `speculation.py`.
"""

from __future__ import annotations

from qwench.runtime.spec_decode.draft_model import MARGINS
from qwench.runtime.spec_decode.following import Following

# Of a draft that hasn't guessed yet: how often it is right, by confidence.
_FIRST_ODDS = (0.3, 0.4, 0.45, 0.55, 0.6, 0.7, 0.8, 0.9, 0.95)
_FIRST_RATE = 0.7
_SLOWEST, _SLOWEST_OF_ODDS = 0.02, 0.05  # weight of one more guess, once there have been many
_PASSED_OVER, _FORGOTTEN = 0.1, 0.002
assert len(_FIRST_ODDS) == len(MARGINS) + 1


class Acceptance:
    """rate: of the guesses looked at, the share that was right. Greedy and sampled requests have odds of their own."""

    def __init__(self) -> None:
        self.rate = _FIRST_RATE
        self._odds = [list(_FIRST_ODDS), list(_FIRST_ODDS)]
        self._num_learned = 0

    def odds(self, is_sampled: bool) -> list[float]:
        """By confidence; valid until the next guess is learned."""
        return self._odds[is_sampled]

    def learn(self, following: Following, is_sampled: bool, confidence: int, is_right: bool) -> None:
        """A guess was looked at."""
        odds, weight = self._odds[is_sampled], max(_SLOWEST, 1 / (self._num_learned + 5))
        self._num_learned += 1
        odds[confidence] += max(weight, _SLOWEST_OF_ODDS) * (is_right - odds[confidence])
        self.rate += weight * (is_right - self.rate)
        following.learn(is_right)

    def pass_over(self, following: Following, is_sampled: bool, confidence: int) -> None:
        """A guess wasn't worth its place, so nobody will know whether it was right: what it was believed to be counts,
        and what is believed of such guesses tends to what it was at first, until one is looked at again."""
        odds = self._odds[is_sampled]
        following.drift(odds[confidence], _PASSED_OVER)
        self.rate += _SLOWEST * (odds[confidence] - self.rate)
        odds[confidence] += _FORGOTTEN * (_FIRST_ODDS[confidence] - odds[confidence])
