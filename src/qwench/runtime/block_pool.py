"""The blocks of the paged KV cache: who holds them, which are free, and which still hold a known prefix.

A block is held (reference count above 0) or free; free blocks queue by last use. A full block whose content has a
name (a hash chained over all tokens up to its end) can be found again, held or free, until it is handed out anew.
Knows nothing of requests or tensors. Called by the scheduler.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from qwench.targets.target import Int32


def block_hash(parent: bytes, tokens: Int32) -> bytes:
    """Name of a full block: 16 bytes of BLAKE2b over its parent's name (or the salt) and its int32 tokens."""
    return hashlib.blake2b(parent + tokens.tobytes(), digest_size=16).digest()


def extend_hashes(hashes: list[bytes], salt: bytes, tokens: Int32, block_size: int, count: int) -> None:
    """Adds the names of the next full blocks of `tokens` to those that are known, until there are `count`."""
    for i in range(len(hashes), count):
        parent = hashes[-1] if hashes else salt
        hashes.append(block_hash(parent, tokens[i * block_size : (i + 1) * block_size]))


class BlockPool:
    """`num_blocks` blocks, named by their index."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._ref_counts = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # first: reused first
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def lookup(self, hashes: Sequence[bytes]) -> list[int]:
        """Blocks that hold the longest known prefix of the chain `hashes`. Takes no reference."""
        found = []
        for name in hashes:
            block = self._block_of.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def knows(self, name: bytes) -> bool:
        """Whether a block of this name can be found."""
        return name in self._block_of

    def num_free_among(self, blocks: Iterable[int]) -> int:
        return sum(self._ref_counts[block] == 0 for block in blocks)

    def is_shared(self, block: int) -> bool:
        """Whether more than one holder would see a write to it."""
        return self._ref_counts[block] > 1

    def acquire(self, blocks: Iterable[int]) -> None:
        """One more reference to each; a free one is revived."""
        for block in blocks:
            if self._ref_counts[block] == 0:
                del self._free[block]
            self._ref_counts[block] += 1

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each, longest unused first; what they held is forgotten."""
        assert count <= len(self._free)
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._ref_counts[block] = 1
            name = self._hash_of[block]
            if name is not None:
                del self._block_of[name]
                self._hash_of[block] = None
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """One reference less to each. The last of a chain is reused before its parents: it is of least use."""
        for block in reversed(blocks):
            self._ref_counts[block] -= 1
            assert self._ref_counts[block] >= 0
            if self._ref_counts[block] == 0:
                self._free[block] = None
                if self._hash_of[block] is None:
                    self._free.move_to_end(block, last=False)

    def register(self, block: int, name: bytes) -> None:
        """The held block now has the content called `name`. The first block of a name keeps it."""
        assert self._ref_counts[block] > 0 and self._hash_of[block] is None
        if name not in self._block_of:
            self._block_of[name] = block
            self._hash_of[block] = name

    def forget(self, names: Iterable[bytes]) -> None:
        """Nobody finds blocks by these names any more: what they hold is not to be reused."""
        for name in names:
            block = self._block_of.pop(name, None)
            if block is not None:
                self._hash_of[block] = None

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Asserts that counts, free queue and names agree with the block tables of all running requests."""
        held = Counter(block for table in tables for block in table)
        for block, count in enumerate(self._ref_counts):
            assert count == held[block], f"block {block}: {count} references, {held[block]} tables"
            assert (count == 0) == (block in self._free), f"block {block} is {'not ' * (count == 0)}free"
        assert all(0 <= block < self.num_blocks for block in held)
        assert len(self._free) + len(held) == self.num_blocks
        for name, block in self._block_of.items():
            assert self._hash_of[block] == name
        assert len(self._block_of) == sum(name is not None for name in self._hash_of)
