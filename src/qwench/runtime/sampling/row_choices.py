"""The tokens that rows of logits say by themselves, for all rows of a step at once: the likeliest, or one drawn, also
once bias and penalties are applied.

What else can have a say, as grammars and thoughts, is the sampler's. Called by the engine.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from qwench.runtime.request import Request
from qwench.runtime.sampling.draws import MOST_WEIGHTS, draw
from qwench.runtime.sampling.sampler import TokenSampler
from qwench.targets.cpu import _native
from qwench.targets.target import LOGIT_GROUP, Float32

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
    to_process: list[tuple[int, TokenSampler]] = []
    end = 0
    for request, num_scored, num_sampled in with_logits:
        start, end, sampler = end + num_scored, end + num_scored + num_sampled, request.sampler
        assert sampler is not None
        if not sampler.is_decided_by_row:
            # With drafts a row's penalties depend on the token of the row before.
            if num_sampled == 1 and chosen[start] != UNDECIDED and sampler.is_drawn_once_processed:
                to_process.append((start, sampler))
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
    at_once = max(1, MOST_WEIGHTS // logits.shape[1])
    for i in range(0, len(to_process), at_once):
        _draw_processed(logits, to_process[i : i + at_once], chosen)
    return chosen


def _draw_processed(logits: Float32, to_process: list[tuple[int, TokenSampler]], chosen: list[int]) -> None:
    """Draws the tokens of these rows, from copies, since who is left undecided needs the row as it was."""
    rows = logits[[row for row, _ in to_process]]
    for processed, (_, sampler) in zip(rows, to_process):
        sampler.process(processed)
    maxima = np.empty((len(rows), -(-rows.shape[1] // LOGIT_GROUP)), np.float32)
    _native.group_maxima(rows, maxima)
    finite = [i for i, token in enumerate(_native.likeliest(rows, maxima, len(rows))) if token != UNDECIDED]
    samplers = [to_process[i][1] for i in finite]
    samplings = [sampler.sampling for sampler in samplers if sampler.sampling is not None]
    drawn = draw(rows, maxima, finite, samplings, [sampler.num_sampled for sampler in samplers])
    for i, token in zip(finite, drawn):
        chosen[to_process[i][0]] = token
