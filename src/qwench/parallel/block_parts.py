"""A block of the KV cache as ranks have it: each the kv heads that its query heads use.

Blocks are [places, keys and values, kv heads, bytes of a head] in one process and in every rank, so that a block which
rank 0 puts together is the same whatever the number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwench.program.cache_groups import cache_groups
from qwench.program.ops import Program
from qwench.targets.target import Bytes


@dataclass(frozen=True)
class BlockParts:
    num_places: int
    num_kv_heads: int
    first: int
    last: int

    @classmethod
    def of(cls, program: Program) -> BlockParts:
        """Those of the rank whose Program it is."""
        spec = program.spec
        heads = next(op.attrs["heads"] for op in program.ops if "heads" in op.attrs)
        share = spec.num_heads // spec.num_kv_heads
        return cls(len(cache_groups(spec)[0].layers), spec.num_kv_heads, heads[0] // share, (heads[1] - 1) // share + 1)

    def take(self, whole: Bytes) -> Bytes:
        """This rank's part of a block."""
        return np.ascontiguousarray(self._heads(whole)).reshape(-1)

    def put(self, part: Bytes, whole: Bytes) -> None:
        """The inverse, into a block that others fill as well."""
        self._heads(whole)[:] = part.reshape(self.num_places, 2, self.last - self.first, -1)

    def whole_bytes(self, part: Bytes) -> int:
        return len(part) // (self.last - self.first) * self.num_kv_heads

    def part_bytes(self, whole_bytes: int) -> int:
        return whole_bytes // self.num_kv_heads * (self.last - self.first)

    def _heads(self, whole: Bytes) -> Bytes:
        return whole.reshape(self.num_places, 2, self.num_kv_heads, -1)[:, :, self.first : self.last]
