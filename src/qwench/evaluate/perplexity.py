"""Perplexity of a text with a sliding window: how surprised a model is by each token, given what stands before it.

Windows overlap, so that a token has at least `window` - `stride` tokens before it, but for those of the first window.
Knows no tokenizer and no kind of model: whatever gives logits rows can be measured. Called by `qwench eval` and
`benchmarks.quality`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from qwench.errors import ConfigError, NumericalError
from qwench.evaluate.metrics import token_nll
from qwench.evaluate.truth import Truth
from qwench.targets.target import Float32, Int32

# (token_ids, first) -> blocks of logits rows of that sequence: the position of a block's first row, and the block
# [rows, vocab_size] fp32; together they are the rows from `first` on.
LogitRows = Callable[[Int32, int], Iterator[tuple[int, Float32]]]
BLOCK = 64  # rows that are in memory as float64 at once


@dataclass(frozen=True)
class Perplexity:
    """num_scored: tokens that were predicted; nll: the mean of -log p of them, in nats."""

    num_scored: int
    nll: float

    @property
    def value(self) -> float:
        return math.exp(self.nll)


@dataclass(frozen=True)
class Window:
    """Tokens [begin, end) are read; of them those from `first_scored` on are scored."""

    begin: int
    end: int
    first_scored: int


def sliding_windows(num_tokens: int, window: int, stride: int) -> list[Window]:
    """Windows that score every token but the first exactly once, each begun `stride` after the last.

    Raises ConfigError for a text, a window or a stride that can't be used.
    """
    if num_tokens < 2:
        raise ConfigError(f"the text has {num_tokens} tokens; give at least two")
    if window < 2 or not 1 <= stride < window:
        raise ConfigError(
            f"a window of {window} and a stride of {stride} tokens can't be used; the window must be at least 2, the "
            "stride at least 1 and less than the window"
        )
    result = [Window(0, min(window, num_tokens), 1)]
    while result[-1].end < num_tokens:
        begin = result[-1].begin + stride
        result.append(Window(begin, min(begin + window, num_tokens), result[-1].end))
    return result


def perplexity(
    rows: LogitRows, token_ids: Int32, window: int, stride: int, report: Callable[[int, int], None] | None = None
) -> Perplexity:
    """exp of the mean of -log p(token | those before it in its window) over a text.

    report: told the tokens done and in all. Raises NumericalError when the model gives NaN or infinity.
    """
    total, scored = 0.0, 0
    for part in sliding_windows(len(token_ids), window, stride):
        ids = token_ids[part.begin : part.end]
        # Row r predicts token r + 1; what the last row predicts is beyond the window.
        for at, block in rows(ids, part.first_scored - 1 - part.begin):
            for start in range(0, len(block), BLOCK):
                targets = ids[at + start + 1 : at + min(start + BLOCK, len(block)) + 1]
                if len(targets):
                    total += float(token_nll(block[start : start + len(targets)], targets).sum())
                    scored += len(targets)
        if not math.isfinite(total):
            raise NumericalError("the model gave NaN or infinite logits; its perplexity can't be measured")
        if report is not None:
            report(part.end, len(token_ids))
    assert scored == len(token_ids) - 1
    return Perplexity(scored, total / scored)


def truth_rows(truth: Truth) -> LogitRows:
    """A truth as something that gives logits rows."""

    def rows(token_ids: Int32, first: int) -> Iterator[tuple[int, Float32]]:
        yield first, truth.logits([np.asarray(token_ids)])[first:]

    return rows
