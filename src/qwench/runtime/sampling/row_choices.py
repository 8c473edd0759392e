"""The tokens that rows of logits say by themselves, for all rows of a step at once: the likeliest, or one drawn.

What else can have a say, as grammars and penalties, is the sampler's. Called by the engine.
"""

from __future__ import annotations

from collections.abc import Iterable

from qwench.runtime.request import Request
from qwench.runtime.sampling.draws import draw
from qwench.targets.cpu import _native
from qwench.targets.target import Float32

UNDECIDED = -1


def choose(
    logits: Float32, maxima: Float32, num_rows: int, with_logits: Iterable[tuple[Request, int, int]]
) -> list[int]:
    """The token of each of the first rows, UNDECIDED where the row alone doesn't decide or isn't finite.

    logits: [at least num_rows, vocab_size] fp32; maxima: of each LOGIT_GROUP of them. with_logits: whose they are, in
    order: (request, rows for prompt_logprobs, rows to sample from).
    """
    chosen = _native.likeliest(logits, maxima, num_rows)
    rows: list[int] = []
    samplings: list[_native.Sampling] = []
    counters: list[int] = []
    end = 0
    for request, num_scored, num_sampled in with_logits:
        start, end, sampler = end + num_scored, end + num_scored + num_sampled, request.sampler
        assert sampler is not None
        if not sampler.is_decided_by_row:
            chosen[start:end] = [UNDECIDED] * num_sampled
        elif (sampling := sampler.sampling) is not None:
            for ahead in range(num_sampled):
                if chosen[start + ahead] != UNDECIDED:
                    rows.append(start + ahead)
                    samplings.append(sampling)
                    counters.append(sampler.num_sampled + ahead)
    if rows:
        for row, token in zip(rows, draw(logits, maxima, rows, samplings, counters)):
            chosen[row] = token
    return chosen
