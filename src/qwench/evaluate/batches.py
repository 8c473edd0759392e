"""Sequences -> the StepBatches that compute them from their beginning, as any target's executor takes them.

Knows no model. The cache is theirs alone: sequence after sequence gets the next blocks. Called by the modules of this
room that run an executor without an engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from qwench.targets.target import Int32, StepBatch


def num_blocks(lengths: Sequence[int], block_size: int) -> int:
    """Cache blocks that sequences of these lengths take side by side."""
    return sum(-(-length // block_size) for length in lengths)


def whole_sequences(sequences: Sequence[Int32], block_size: int) -> StepBatch:
    """All sequences in one step, logits of every token wanted."""
    lengths = [len(ids) for ids in sequences]
    tables = np.zeros((len(sequences), max(-(-length // block_size) for length in lengths)), np.int32)
    first = 0
    for row, length in enumerate(lengths):
        count = -(-length // block_size)
        tables[row, :count] = np.arange(first, first + count)
        first += count
    starts = np.cumsum([0, *lengths]).astype(np.int32)
    return StepBatch(
        np.concatenate(sequences).astype(np.int32), starts, np.array(lengths, np.int32), tables,
        np.arange(starts[-1], dtype=np.int32),
    )  # fmt: skip


def chunks(ids: Int32, block_size: int, max_tokens: int, first: int = 0) -> Iterator[tuple[int, StepBatch]]:
    """One sequence in steps of up to `max_tokens`, with the position each begins at; logits from `first` on wanted."""
    table = np.arange(num_blocks([len(ids)], block_size), dtype=np.int32)[None]
    for begin in range(0, len(ids), max_tokens):
        part = np.ascontiguousarray(ids[begin : begin + max_tokens], np.int32)
        end = begin + len(part)
        rows = np.arange(max(first - begin, 0), len(part), dtype=np.int32)
        yield begin, StepBatch(part, np.array([0, len(part)], np.int32), np.array([end], np.int32), table, rows)
