"""Runs new tokens of many rows through the executor, in steps of at most `max_step_tokens`, results into arrays.

Knows nothing of torch, padding or masks: rows are sequences and their tokens. Called by `modeling/forward.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwench.errors import RequestError
from qwench.targets.target import Executor, Float32, Int32, StepBatch

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Feed:
    """New tokens of one sequence whose blocks are reserved already.

    block_tables: per cache group the blocks of the sequence, enough for all its tokens. start: tokens in the cache
        already.
    tokens: [count] int32 ids, or [count, hidden_size] fp32 embeddings. wanted: [num_wanted] int64, increasing offsets
    into tokens whose logits are wanted. rows: [num_wanted] int64, increasing rows of the logits that take them.
    hidden_rows: [count] int64, increasing rows of the hidden states that take those of all tokens.
    adapter: number of its LoRA adapter, -1 for none.
    """

    block_tables: list[list[int]]
    start: int
    tokens: Int32 | Float32
    wanted: Int64
    rows: Int64
    hidden_rows: Int64
    adapter: int = -1


@dataclass(frozen=True)
class _Piece:
    """Tokens [low, high) of a feed: its share of one step."""

    feed: Feed
    low: int
    high: int


def run_feeds(
    executor: Executor, feeds: Sequence[Feed], max_step_tokens: int, logits: Float32, hidden: Float32 | None,
    after_step: Callable[[], None], *, is_causal: bool = True,
) -> None:  # fmt: skip
    """Computes all feeds, in order; writes the wanted rows of `logits` [num_rows, num_outputs], and of `hidden`
    [num_states, num_rows, hidden_size] if there is one, which takes the last `num_states` states.

    after_step: called after each step; may raise. is_causal: False: no feed is cut, nor has one a past. Raises
    RequestError for one that is too long for that.
    """
    for pieces in _steps(feeds, max_step_tokens) if is_causal else _whole_feeds(feeds, max_step_tokens):
        _run_step(executor, pieces, logits, hidden)
        after_step()


def _steps(feeds: Sequence[Feed], max_step_tokens: int) -> Iterator[list[_Piece]]:
    """Cuts the feeds so that each step is full but the last."""
    pieces: list[_Piece] = []
    room = max_step_tokens
    for feed in feeds:
        low = 0
        while low < len(feed.tokens):
            high = min(low + room, len(feed.tokens))
            pieces.append(_Piece(feed, low, high))
            room -= high - low
            low = high
            if not room:
                yield pieces
                pieces, room = [], max_step_tokens
    if pieces:
        yield pieces


def _whole_feeds(feeds: Sequence[Feed], max_step_tokens: int) -> Iterator[list[_Piece]]:
    """As many feeds in each step as it holds."""
    pieces: list[_Piece] = []
    room = max_step_tokens
    for feed in feeds:
        if (count := len(feed.tokens)) > max_step_tokens:
            raise RequestError(
                f"a row has {count} tokens, and attention in both directions reads it in one step, which has at most "
                f"{max_step_tokens}; shorten it or compile with a larger prefill_chunk_size"
            )
        if count > room:
            yield pieces
            pieces, room = [], max_step_tokens
        pieces.append(_Piece(feed, 0, count))
        room -= count
    yield pieces


def _run_step(executor: Executor, pieces: list[_Piece], logits: Float32, hidden: Float32 | None) -> None:
    query_start = np.cumsum([0, *(p.high - p.low for p in pieces)], dtype=np.int32)
    longest = max(len(p.feed.block_tables[0]) for p in pieces)
    block_tables = np.zeros((len(pieces), len(pieces[0].feed.block_tables), longest), np.int32)
    logit_rows, destinations = [], []
    for i, piece in enumerate(pieces):
        feed = piece.feed
        block_tables[i, :, : len(feed.block_tables[0])] = feed.block_tables
        here = (feed.wanted >= piece.low) & (feed.wanted < piece.high)
        logit_rows.append(feed.wanted[here] - piece.low + query_start[i])
        destinations.append(feed.rows[here])
    token_ids, embeddings = _tokens(pieces)
    batch = StepBatch(
        token_ids=token_ids,
        query_start=query_start,
        seq_lens=np.array([p.feed.start + p.high for p in pieces], np.int32),
        block_tables=block_tables.reshape(len(pieces), -1),
        logit_rows=np.concatenate(logit_rows).astype(np.int32),
        embeddings=embeddings,
        hidden_rows=None if hidden is None else np.arange(len(token_ids), dtype=np.int32),
        adapters=np.array([p.feed.adapter for p in pieces], np.int32),
    )
    states = None
    if hidden is not None:
        hidden_to = np.concatenate([p.feed.hidden_rows[p.low : p.high] for p in pieces])
        span = _span(hidden_to)
        states = hidden[:, span] if span else np.empty((len(hidden), len(hidden_to), hidden.shape[2]), np.float32)
    to = np.concatenate(destinations)
    if span := _span(to):
        executor.step(batch, logits[span], states)
    else:
        logits[to] = executor.step(batch, None, states)
    if hidden is not None and states is not None and states.base is None:
        hidden[:, hidden_to] = states


def _tokens(pieces: list[_Piece]) -> tuple[Int32, Float32 | None]:
    """Token ids and embeddings of a step, as StepBatch has them."""
    ids: list[Int32] = []
    embeddings: list[Float32] = []
    num_embeddings = 0
    for piece in pieces:
        tokens = piece.feed.tokens[piece.low : piece.high]
        if tokens.ndim == 1:
            ids.append(tokens.astype(np.int32))
        else:
            ids.append(~np.arange(num_embeddings, num_embeddings + len(tokens), dtype=np.int32))
            embeddings.append(tokens.astype(np.float32))
            num_embeddings += len(tokens)
    return np.concatenate(ids), np.concatenate(embeddings) if embeddings else None


def _span(rows: Int64) -> slice | None:
    """The slice that increasing `rows` are, if they are one."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return None
