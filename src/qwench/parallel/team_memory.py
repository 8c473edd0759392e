"""The memory that the ranks of one host share: what native code computes in, its mailbox, and a place for what each
rank but the first gives back. All ranks find the same sizes by themselves.

It is address space; memory is taken as far as it is written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwench.program.cache_groups import cache_groups
from qwench.program.memory import MemoryPlan
from qwench.program.ops import Program
from qwench.targets.target import LOGIT_GROUP, Bytes, CacheConfig

_PAGE = 4096
_NUM_TAKEN = 6  # by native code, each from a page on: its header, arena, work, logits, maxima and mailbox
_LEAST_CALL_BYTES = 1 << 30
_HEAD_BYTES = 1 << 20  # of a message, at most, beside its arrays


@dataclass(frozen=True)
class TeamMemory:
    """Sizes in bytes. native: of all that native code takes, the mailbox included. mail: of the mailbox. result: of
    what a rank gives back."""

    native_bytes: int
    mail_bytes: int
    result_bytes: int
    num_results: int

    @classmethod
    def of(cls, program: Program, plan: MemoryPlan, cache: CacheConfig, num_ranks: int) -> TeamMemory:
        """For a host of so many ranks."""
        rows, num_outputs = plan.max_step_tokens, program.spec.num_outputs
        logits = 4 * rows * (num_outputs + -(-num_outputs // LOGIT_GROUP))
        block = cache.block_bytes(program)
        mail = _HEAD_BYTES + max(_step_bytes(program, rows, cache), _call_bytes(program, block))
        native = plan.num_bytes + logits + mail + _NUM_TAKEN * _PAGE
        return cls(native, mail, block, num_ranks - 1)

    @property
    def num_bytes(self) -> int:
        return self.native_bytes + self.num_results * self.result_bytes

    def native(self, memory: Bytes) -> Bytes:
        return memory[: self.native_bytes]

    def result(self, memory: Bytes, rank: int, num_bytes: int) -> Bytes:
        """Where a rank of this host, of which it is the `rank`th, writes so much, and the first one finds it."""
        assert 1 <= rank <= self.num_results and num_bytes <= self.result_bytes
        start = self.native_bytes + (rank - 1) * self.result_bytes
        return memory[start : start + num_bytes]


def _step_bytes(program: Program, num_tokens: int, cache: CacheConfig) -> int:
    """Of the largest step's arrays: a table of all blocks and an embedding for each token, and 9 numbers."""
    tables = len(cache_groups(program.spec)) * cache.num_blocks
    return 4 * (num_tokens + 1) * (9 + tables + program.spec.hidden_size)


def _call_bytes(program: Program, block_bytes: int) -> int:
    """Of the largest call's arguments: a block, or an adapter, which may be as large as the model in fp32."""
    weights = 4 * sum(int(np.prod(weight.shape, dtype=np.int64)) for weight in program.weights.values())
    return max(block_bytes, weights, _LEAST_CALL_BYTES)
