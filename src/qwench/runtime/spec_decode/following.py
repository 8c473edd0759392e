"""How far a draft model has come in one sample, and how often its guesses there were right.

Held by a `Request`, kept by `draft_model.py` and `speculation.py`.
"""

from __future__ import annotations

_RATE = 0.1  # some ten guesses count


class Following:
    """num_computed: of the request's first tokens, how many have keys and values in the draft's cache; None: it was
        preempted, and its blocks will tell.
    num_fed: of this step's guesses, how many the draft has computed itself: all but the last.
    acceptance: of the guesses looked at, the share that was right; recent ones count.
    confidences: of this step's guesses, as `DraftModel` tells them.
    """

    __slots__ = ("acceptance", "confidences", "num_computed", "num_fed")

    def __init__(self, acceptance: float) -> None:
        self.acceptance = acceptance
        self.num_computed: int | None = None
        self.num_fed = 0
        self.confidences: list[int] = []

    def learn(self, is_right: bool) -> None:
        self.acceptance += _RATE * (is_right - self.acceptance)

    def drift(self, acceptance: float, share: float) -> None:
        """Towards another acceptance rate: what was learned is long ago."""
        self.acceptance += share * (acceptance - self.acceptance)
