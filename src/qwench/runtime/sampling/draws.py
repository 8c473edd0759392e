"""Tokens drawn from rows of logits by temperature, top-k, top-p, min-p and one random number each.

A row's token depends on nothing but the row, its sampling and the counter of its random number, whatever other rows are
asked for with it. Native code does all but the exponentials, which are NumPy's like those of log-probabilities. Called
for all rows of a step by `row_choices.py`, and for one row by the sampler.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qwench.targets.cpu import _native
from qwench.targets.target import Float32

MOST_WEIGHTS = 1 << 18  # that are held at once, unless a single row has more


def draw(
    logits: Float32, maxima: Float32 | None, rows: Sequence[int], samplings: Sequence[_native.Sampling],
    counters: Sequence[int], attempt: int = 0,
) -> list[int]:  # fmt: skip
    """A token of each of the rows, whose largest logit is finite, by the random number of its counter and the attempt.

    logits: [n, num_tokens] fp32; maxima: [n, ...] of each LOGIT_GROUP of them, if they are known.
    """
    draws, size, tokens = _native.Draws(), max(1, MOST_WEIGHTS // logits.shape[1]), []
    for i in range(0, len(rows), size):
        weights = draws.gather(logits, maxima, rows[i : i + size], samplings[i : i + size])
        np.exp(weights, out=weights)
        tokens += draws.draw(counters[i : i + size], attempt)
    return tokens
