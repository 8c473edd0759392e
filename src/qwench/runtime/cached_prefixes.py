"""Prefixes out of the prefix cache and into it, as the bytes of their blocks.

What a file of them looks like is `prefix_file.py`'s. Called by `LLM` by way of the engine, between two steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qwench.errors import CapacityError
from qwench.runtime.block_pool import extend_hashes
from qwench.runtime.scheduler import Scheduler
from qwench.targets.target import Bytes, Executor, Int32


class CachedPrefixes:
    """Of the scheduler's cache, whose blocks the executor keeps."""

    def __init__(self, scheduler: Scheduler, executor: Executor) -> None:
        self._scheduler, self._executor = scheduler, executor

    def copy(self, token_ids: Int32) -> tuple[list[int], Bytes] | None:
        """Copies the cached full blocks of tokens [n] int32, as the fields `firsts` and `blocks` of SavedPrefix. None
        unless all blocks are cached that a request needs to continue after these tokens."""
        hashes = self._block_hashes(token_ids)
        length, found = self._scheduler.find(hashes)
        if length < len(hashes):
            return None
        blocks = [self._executor.read_block(block) for group in found for block in group]
        return [length - len(group) for group in found], np.stack(blocks)

    def restore(self, token_ids: Int32, firsts: Sequence[int], blocks: Bytes) -> None:
        """Puts the blocks of `copy` into the prefix cache, where they stay until evicted. Raises CapacityError
        when there are too few free blocks."""
        hashes = self._block_hashes(token_ids)
        needed = sum(len(hashes) - first for first in firsts)
        assert needed == len(blocks)
        if needed > self._scheduler.pool.num_free:
            raise CapacityError(
                f"the prefix needs {needed} cache blocks and {self._scheduler.pool.num_free} are free; give the cache "
                "more memory (kvcache_num_blocks)"
            )
        starts = np.cumsum([0, *(len(hashes) - first for first in firsts)])

        def fill(group: int, index: int, block: int) -> None:
            self._executor.write_block(block, blocks[starts[group] + index - firsts[group]])

        self._scheduler.insert(hashes, firsts, fill)

    def _block_hashes(self, token_ids: Int32) -> list[bytes]:
        """Of the full blocks of tokens, for requests without a salt."""
        hashes: list[bytes] = []
        extend_hashes(hashes, b"", token_ids, self._scheduler.block_size, len(token_ids) // self._scheduler.block_size)
        return hashes
