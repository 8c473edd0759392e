"""QwenchCache: `past_key_values` as pages of the engine's KV cache.

Each row of a batch is one sequence: a block table and a length. Rows share blocks until one of them writes (copy on
write), so beam search and forks copy at most one block a row. Blocks come from the engine's own pool: memory is one.
Knows nothing of logits or masks' meaning. Made by `QwenchForCausalLM`; transformers' loops call the rest.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache

from qwench.errors import CapacityError, RequestError
from qwench.modeling.deadline import Deadline
from qwench.program.cache_groups import first_position, most_blocks
from qwench.runtime.block_pool import BlockPool
from qwench.targets.target import Executor


@dataclass
class Row:
    """One sequence: of cache group g, `tables[g][i]` holds positions [i * block_size, (i + 1) * block_size) unless i is
    below `first[g]`: then it lay behind the group's window and was used again. `length` positions are filled."""

    tables: list[list[int]]
    first: list[int]
    length: int = 0

    def held(self) -> list[int]:
        """All its blocks."""
        return [block for table, first in zip(self.tables, self.first, strict=True) for block in table[first:]]


class Pages:
    """The engine's blocks as the caches of one model use them. `lock` guards blocks, executor and engine.

    windows: the sliding window of each cache group. max_step_tokens: tokens that are computed in one step at most.
    """

    def __init__(
        self, pool: BlockPool, executor: Executor, block_size: int, max_seq_len: int, windows: Sequence[int | None],
        max_step_tokens: int, deadline: Deadline,
    ) -> None:  # fmt: skip
        self.pool, self.executor, self.deadline = pool, executor, deadline
        self.block_size, self.max_seq_len, self.windows = block_size, max_seq_len, tuple(windows)
        self._limits = [most_blocks((window,), max_seq_len, block_size, max_step_tokens) for window in windows]
        self.lock = threading.RLock()
        # A collected cache may be found at any bytecode, even inside the pool: its blocks wait here until it's safe.
        self._discarded: deque[list[int]] = deque()

    def require(self, count: int) -> None:
        """Makes sure that `count` blocks are free. Raises CapacityError."""
        self.reclaim()
        if self.pool.num_free < count:
            gc.collect()  # forgotten caches may sit in reference cycles
            self.reclaim()
        if self.pool.num_free < count:
            raise CapacityError(
                f"{count} blocks of KV cache are needed and {self.pool.num_free} of {self.pool.num_blocks} are free; "
                "drop past_key_values that you keep, use fewer rows or beams, or give more kvcache_num_blocks"
            )

    def discard(self, rows: list[Row]) -> None:
        """Frees later: safe from a finalizer."""
        for row in rows:
            self._discarded.append(row.held())

    def reclaim(self) -> None:
        """Frees what collected caches left."""
        while self._discarded:
            self.pool.release(self._discarded.popleft())

    def reserve(self, row: Row, count: int) -> None:
        """Gives `row` blocks of its own for the next `count` positions; shared ones are copied first."""
        if row.length + count > self.max_seq_len:
            raise RequestError(
                f"a sequence of {row.length + count} tokens exceeds max_seq_len {self.max_seq_len}; give fewer tokens, "
                "or compile with a larger max_seq_len"
            )
        begin, end = row.length // self.block_size, -(-(row.length + count) // self.block_size)
        for group, table in enumerate(row.tables):
            for index in range(begin, len(table)):
                self._own(table, index)
            while len(table) < end:
                if len(table) - row.first[group] == self._limits[group]:  # the oldest lies behind the window
                    self._own(table, row.first[group], with_content=False)
                    table.append(table[row.first[group]])
                    row.first[group] += 1
                else:
                    self.require(1)
                    table += self.pool.allocate(1)

    def _own(self, table: list[int], index: int, with_content: bool = True) -> None:
        """Replaces a block that others hold, too."""
        if not self.pool.is_shared(table[index]):
            return
        self.require(1)
        new = self.pool.allocate(1)
        if with_content:
            self.executor.copy_blocks([table[index]], new)
        self.pool.release([table[index]])
        table[index] = new[0]

    def new_row(self) -> Row:
        return Row([[] for _ in self.windows], [0] * len(self.windows))

    def fork(self, row: Row) -> Row:
        """A second row over the same blocks."""
        self.pool.acquire(row.held())
        return Row([list(table) for table in row.tables], list(row.first), row.length)

    def free(self, row: Row) -> None:
        """Lets go of all its blocks."""
        self.pool.release(row.held())

    def shorten(self, row: Row, length: int) -> None:
        """Forgets positions from `length` on. Raises RequestError when blocks before them were used again."""
        for window, first in zip(self.windows, row.first, strict=True):
            if first_position(window, length) // self.block_size < first:
                raise RequestError(
                    f"a cache of {row.length} tokens can't be cropped to {length}: what a sliding window of {window} "
                    "sees there was given up; compute the sequence again"
                )
        row.length, kept = length, -(-length // self.block_size)
        for group, table in enumerate(row.tables):
            row.first[group] = min(row.first[group], kept)
            self.pool.release(table[kept:])
            del table[kept:]


class QwenchCache(Cache):  # type: ignore[misc]
    """The cached sequences of a batch. `columns` [batch, length] bool says which columns of the padded batch are real.

    Its length, as transformers counts, includes padding: `get_seq_length() == columns.shape[1]`.
    """

    def __init__(self, pages: Pages) -> None:
        super().__init__(layers=[])
        self.pages = pages
        self.rows: list[Row] = []
        self.columns = torch.zeros(0, 0, dtype=torch.bool)
        weakref.finalize(self, pages.discard, self.rows)

    def start(self, batch_size: int) -> None:
        """Makes rows of an empty cache. Raises RequestError if the cache holds another batch size."""
        if not self.get_seq_length():
            self.replace(
                [self.pages.new_row() for _ in range(batch_size)], torch.zeros(batch_size, 0, dtype=torch.bool)
            )
        if len(self.rows) != batch_size:
            raise RequestError(f"past_key_values holds {len(self.rows)} rows, but input_ids have {batch_size}")

    def replace(self, rows: list[Row], columns: torch.Tensor) -> None:
        """Takes over `rows` and frees the old ones. The list stays the same object: the finalizer holds it."""
        with self.pages.lock:
            old = list(self.rows)
            self.rows[:] = rows
            self.columns = columns
            for row in old:
                self.pages.free(row)

    def _select(self, indices: torch.Tensor) -> None:
        picked = indices.to("cpu")
        with self.pages.lock:
            self.replace([self.pages.fork(self.rows[i]) for i in picked.tolist()], self.columns[picked])

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i continues what row `beam_idx[i]` was."""
        if self.rows:
            self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times, side by side."""
        self._select(torch.arange(len(self.rows)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows at `indices` (numbers, or a mask)."""
        self._select(torch.arange(len(self.rows))[indices.to("cpu")])

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last `-tokens_to_remove` columns; a positive number (transformers 4) is the length to keep."""
        length = self.get_seq_length()
        keep = min(tokens_to_remove, length) if tokens_to_remove > 0 else max(length + tokens_to_remove, 0)
        removed = self.columns[:, keep:].sum(dim=1).tolist()
        with self.pages.lock:
            for row, count in zip(self.rows, removed, strict=True):
                self.pages.shorten(row, row.length - count)
        self.columns = self.columns[:, :keep]

    def reset(self) -> None:
        """Empties the cache, as if it were new."""
        self.replace([], torch.zeros(0, 0, dtype=torch.bool))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self.columns.shape[1])

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return self.pages.max_seq_len

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """`get_max_length` under its name in transformers 4."""
        return self.pages.max_seq_len

    @property
    def is_linear(self) -> list[bool]:
        """Attention of its layers, which transformers asks since 5.24: none is linear."""
        return [False]

    @property
    def batch_size(self) -> int:
        return len(self.rows) or -1

    @property
    def is_initialized(self) -> bool:
        return bool(self.rows)

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        raise RequestError("a QwenchCache is written by QwenchForCausalLM only; it can't serve another model")

    def __deepcopy__(self, memo: dict[int, Any]) -> QwenchCache:
        """A copy that shares blocks until either is extended: the way to reuse a prompt for many answers."""
        copy = QwenchCache(self.pages)
        with self.pages.lock:
            copy.replace([self.pages.fork(row) for row in self.rows], self.columns.clone())
        return copy

    def __repr__(self) -> str:
        return f"QwenchCache(lengths={[row.length for row in self.rows]})"
