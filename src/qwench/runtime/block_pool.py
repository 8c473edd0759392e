"""The blocks of the paged KV cache: reference counts, the free list, and the prefix cache.

A block is held (reference count above 0) or free; the free list is in order of last use. A full block is found by its
hash, which is chained over all tokens up to its end, whether it is held or free, until it is allocated anew. Deals with
block ids only, not with requests or tensors. Called by the scheduler.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from qwench.targets.target import Int32


def hash_block(parent: bytes, tokens: Int32) -> bytes:
    """Hash of a full block: 16 bytes of BLAKE2b over its parent's hash (or the salt) and its int32 tokens."""
    return hashlib.blake2b(parent + tokens.tobytes(), digest_size=16).digest()


def extend_hashes(hashes: list[bytes], salt: bytes, tokens: Int32, block_size: int, count: int) -> None:
    """Appends the hashes of the next full blocks of `tokens` to `hashes`, until there are `count`."""
    for i in range(len(hashes), count):
        parent = hashes[-1] if hashes else salt
        hashes.append(hash_block(parent, tokens[i * block_size : (i + 1) * block_size]))


class BlockPool:
    """`num_blocks` blocks, each known by its index.

    num_followed: of each block, how many of its first positions a draft model's cache holds too.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_followed = [0] * num_blocks
        self._ref_counts = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # first: reused first
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self.hash_to_block: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def lookup(self, hashes: Sequence[bytes]) -> list[int]:
        """Blocks of the longest cached prefix of the chain `hashes`. Takes no reference."""
        found = []
        for block_hash in hashes:
            block = self.hash_to_block.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self.hash_to_block

    def num_free_among(self, blocks: Iterable[int]) -> int:
        return sum(self._ref_counts[block] == 0 for block in blocks)

    def is_shared(self, block: int) -> bool:
        """Whether more than one holder would see a write to it."""
        return self._ref_counts[block] > 1

    def acquire(self, blocks: Iterable[int]) -> None:
        """One more reference to each; a free one leaves the free list."""
        for block in blocks:
            if self._ref_counts[block] == 0:
                del self._free[block]
            self._ref_counts[block] += 1

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each, least recently used first; their content can't be found any more."""
        assert count <= len(self._free)
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._ref_counts[block], self.num_followed[block] = 1, 0
            block_hash = self._hash_of[block]
            if block_hash is not None:
                del self.hash_to_block[block_hash]
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

    def register(self, block: int, block_hash: bytes) -> None:
        """The held block can be found by this hash from now on, unless another block has it already."""
        assert self._ref_counts[block] > 0 and self._hash_of[block] is None
        if block_hash not in self.hash_to_block:
            self.hash_to_block[block_hash] = block
            self._hash_of[block] = block_hash

    def forget(self, hashes: Iterable[bytes]) -> None:
        """Blocks can't be found by these hashes any more, because their content is wrong."""
        for block_hash in hashes:
            block = self.hash_to_block.pop(block_hash, None)
            if block is not None:
                self._hash_of[block] = None

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Asserts that counts, free list and hashes agree with the block tables of all running requests."""
        held = Counter(block for table in tables for block in table)
        for block, count in enumerate(self._ref_counts):
            assert count == held[block], f"block {block}: {count} references, {held[block]} tables"
            assert (count == 0) == (block in self._free), f"block {block} is {'not ' * (count == 0)}free"
        assert all(0 <= block < self.num_blocks for block in held)
        assert len(self._free) + len(held) == self.num_blocks
        for block_hash, block in self.hash_to_block.items():
            assert self._hash_of[block] == block_hash
        assert len(self.hash_to_block) == sum(block_hash is not None for block_hash in self._hash_of)
