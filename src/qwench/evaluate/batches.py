"""Sequences -> the StepBatches that compute them from their beginning, as any target's executor takes them.

Knows of a model only how many cache groups it has (`program/cache_groups.py`). The cache is the sequences' alone, and
keeps everything: each group of each sequence gets the next blocks. Called by the modules of this room that run an
executor without an engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from qwench.targets.target import Int32, StepBatch


def num_blocks(lengths: Sequence[int], block_size: int, num_groups: int = 1) -> int:
    """Cache blocks that sequences of these lengths take side by side."""
    return num_groups * sum(-(-length // block_size) for length in lengths)


def whole_sequences(sequences: Sequence[Int32], block_size: int, num_groups: int = 1) -> StepBatch:
    """All sequences in one step, logits of every token wanted."""
    lengths = [len(ids) for ids in sequences]
    starts = np.cumsum([0, *lengths]).astype(np.int32)
    tables = _block_tables(lengths, block_size, num_groups)
    ids = np.concatenate(sequences).astype(np.int32)
    return StepBatch(ids, starts, np.array(lengths, np.int32), tables, np.arange(len(ids), dtype=np.int32))


def chunks(
    ids: Int32, block_size: int, max_tokens: int, num_groups: int = 1, first: int = 0
) -> Iterator[tuple[int, StepBatch]]:
    """One sequence in steps of up to `max_tokens`, with the position each begins at; logits from `first` on wanted."""
    tables = _block_tables([len(ids)], block_size, num_groups)
    for begin in range(0, len(ids), max_tokens):
        part = np.ascontiguousarray(ids[begin : begin + max_tokens], np.int32)
        end = begin + len(part)
        rows = np.arange(max(first - begin, 0), len(part), dtype=np.int32)
        yield begin, StepBatch(part, np.array([0, len(part)], np.int32), np.array([end], np.int32), tables, rows)


def _block_tables(lengths: Sequence[int], block_size: int, num_groups: int) -> Int32:
    """[num_seqs, num_groups * max_blocks] int32."""
    longest = max(-(-length // block_size) for length in lengths)
    tables = np.zeros((len(lengths), num_groups, longest), np.int32)
    first = 0
    for row, length in enumerate(lengths):
        count = num_blocks([length], block_size)
        tables[row, :, :count] = first + np.arange(num_groups * count).reshape(num_groups, count)
        first += num_groups * count
    return tables.reshape(len(lengths), -1)
