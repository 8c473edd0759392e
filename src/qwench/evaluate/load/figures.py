"""What the outcomes of a run come to: percentiles of what users wait for, rates, and goodput.

    time to first token   from when a request was due to its first piece of text, s
    time per token        of the tokens after the first, on average within an answer: (last - first) / (tokens - 1), s
    goodput               answers a second that keep both goals

Only answers that came whole count in percentiles; all others are counted by what went wrong. Knows no HTTP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from qwench.evaluate.load.client import Outcome

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Goals:
    """What an answer must keep to count in the goodput, in seconds; None: any time will do."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def are_kept(self, outcome: Outcome) -> bool:
        is_soon = self.ttft_s is None or ttft(outcome) <= self.ttft_s
        return is_soon and (self.tpot_s is None or (tpot(outcome) or 0.0) <= self.tpot_s)


@dataclass(frozen=True)
class Spread:
    """Mean, percentiles and the largest of a figure; None without a single value."""

    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    most: float | None


@dataclass(frozen=True)
class Figures:
    """One run. duration_s: from the first request to the end of the last answer."""

    num_requests: int
    num_answered: int
    errors: dict[str, int]
    duration_s: float
    requests_per_s: float
    prompt_tokens_per_s: float
    answer_tokens_per_s: float
    goodput_per_s: float
    goals: Goals
    ttft_s: Spread
    tpot_s: Spread
    answer_s: Spread
    late_s: Spread  # how much later than due this client sent its requests: its own slowness, not the server's

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def ttft(outcome: Outcome) -> float:
    return outcome.token_s[0] - outcome.due_s


def tpot(outcome: Outcome) -> float | None:
    """None for a single token."""
    if outcome.num_answer < 2:
        return None
    return (outcome.token_s[-1] - outcome.token_s[0]) / (outcome.num_answer - 1)


def figures(outcomes: Sequence[Outcome], goals: Goals) -> Figures:
    good = [outcome for outcome in outcomes if outcome.error is None]
    begin = min(outcome.due_s for outcome in outcomes)
    duration = max(max(outcome.end_s for outcome in outcomes) - begin, 1e-9)
    return Figures(
        num_requests=len(outcomes),
        num_answered=len(good),
        errors=dict(Counter(outcome.error for outcome in outcomes if outcome.error is not None).most_common()),
        duration_s=duration,
        requests_per_s=len(good) / duration,
        prompt_tokens_per_s=sum(outcome.num_prompt for outcome in good) / duration,
        answer_tokens_per_s=sum(outcome.num_answer for outcome in good) / duration,
        goodput_per_s=sum(goals.are_kept(outcome) for outcome in good) / duration,
        goals=goals,
        ttft_s=_spread([ttft(outcome) for outcome in good]),
        tpot_s=_spread([value for outcome in good if (value := tpot(outcome)) is not None]),
        answer_s=_spread([outcome.end_s - outcome.due_s for outcome in good]),
        late_s=_spread([outcome.sent_s - outcome.due_s for outcome in outcomes]),
    )


def _spread(values: Sequence[float]) -> Spread:
    if not values:
        return Spread(None, None, None, None, None)
    p50, p90, p99 = (float(value) for value in np.percentile(values, PERCENTILES))
    return Spread(float(np.mean(values)), p50, p90, p99, float(max(values)))
