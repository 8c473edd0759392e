"""Runs new tokens of many rows through the executor, in steps of at most `max_step_tokens`, logits into one array.

Knows nothing of torch, padding or masks: rows are sequences and their tokens. Called by `QwenchForCausalLM.forward`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwench.targets.target import Executor, Float32, Int32, StepBatch

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Feed:
    """New tokens of one sequence whose blocks are reserved already.

    block_table: the blocks of the sequence, enough for all its tokens. start: tokens in the cache already.
    token_ids: [count] int32. wanted: [num_wanted] int64, increasing offsets into token_ids whose logits are wanted.
    rows: [num_wanted] int64, increasing rows of the output that take them.
    """

    block_table: list[int]
    start: int
    token_ids: Int32
    wanted: Int64
    rows: Int64


@dataclass(frozen=True)
class _Piece:
    """Tokens [low, high) of a feed: its share of one step."""

    feed: Feed
    low: int
    high: int


def run_feeds(executor: Executor, feeds: Sequence[Feed], max_step_tokens: int, out: Float32) -> None:
    """Computes all feeds, in order; writes the wanted logits to rows of `out` [num_rows, vocab_size]."""
    for pieces in _steps(feeds, max_step_tokens):
        _run_step(executor, pieces, out)


def _steps(feeds: Sequence[Feed], max_step_tokens: int) -> Iterator[list[_Piece]]:
    """Cuts the feeds so that each step is full but the last."""
    pieces: list[_Piece] = []
    room = max_step_tokens
    for feed in feeds:
        low = 0
        while low < len(feed.token_ids):
            high = min(low + room, len(feed.token_ids))
            pieces.append(_Piece(feed, low, high))
            room -= high - low
            low = high
            if not room:
                yield pieces
                pieces, room = [], max_step_tokens
    if pieces:
        yield pieces


def _run_step(executor: Executor, pieces: list[_Piece], out: Float32) -> None:
    query_start = np.cumsum([0, *(p.high - p.low for p in pieces)], dtype=np.int32)
    block_tables = np.zeros((len(pieces), max(len(p.feed.block_table) for p in pieces)), np.int32)
    logit_rows, destinations = [], []
    for i, piece in enumerate(pieces):
        feed = piece.feed
        block_tables[i, : len(feed.block_table)] = feed.block_table
        here = (feed.wanted >= piece.low) & (feed.wanted < piece.high)
        logit_rows.append(feed.wanted[here] - piece.low + query_start[i])
        destinations.append(feed.rows[here])
    to = np.concatenate(destinations)
    batch = StepBatch(
        token_ids=np.concatenate([p.feed.token_ids[p.low : p.high] for p in pieces]),
        query_start=query_start,
        seq_lens=np.array([p.feed.start + p.high for p in pieces], np.int32),
        block_tables=block_tables,
        logit_rows=np.concatenate(logit_rows).astype(np.int32),
    )
    if len(to) and to[-1] - to[0] + 1 == len(to):
        executor.step(batch, out[to[0] : to[-1] + 1])
    else:
        out[to] = executor.step(batch)
