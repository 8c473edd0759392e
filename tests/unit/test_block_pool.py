"""The block pool by itself: who holds what, what is found again, what is reused first."""

from __future__ import annotations

import numpy as np
import pytest

from qwench.runtime.block_pool import BlockPool, hash_block


def names(count: int, salt: bytes = b"") -> list[bytes]:
    chain = [salt]
    for i in range(count):
        chain.append(hash_block(chain[-1], np.full(16, i, np.int32)))
    return chain[1:]


def test_allocate_and_release() -> None:
    pool = BlockPool(4)
    first = pool.allocate(3)
    assert len(set(first)) == 3 and pool.num_free == 1
    pool.check_integrity([first])
    pool.release(first)
    assert pool.num_free == 4
    pool.check_integrity([])


def test_named_blocks_are_found_held_or_free_until_reused() -> None:
    pool, chain = BlockPool(4), names(3)
    blocks = pool.allocate(3)
    for block, name in zip(blocks, chain, strict=True):
        pool.register(block, name)
    assert pool.lookup(chain) == blocks
    assert pool.num_free_among(blocks) == 0
    pool.release(blocks)
    assert pool.lookup(chain) == blocks
    assert pool.num_free_among(blocks) == 3
    pool.acquire(blocks[:1])
    assert pool.num_free == 3
    pool.check_integrity([blocks[:1]])
    pool.allocate(3)
    assert pool.lookup(chain) == blocks[:1]


def test_order_of_reuse() -> None:
    """Nameless blocks first, then the longest unused, the end of a chain before its beginning."""
    pool, chain = BlockPool(5), names(2)
    old, other = pool.allocate(2), pool.allocate(2)
    for block, name in zip(old, chain, strict=True):
        pool.register(block, name)
    pool.register(other[0], names(1, b"other")[0])
    untouched = (set(range(5)) - set(old) - set(other)).pop()
    pool.release(old)
    pool.release(other)
    assert [pool.allocate(1)[0] for _ in range(5)] == [other[1], untouched, old[1], old[0], other[0]]


def test_lookup_stops_at_the_first_gap() -> None:
    pool, chain = BlockPool(4), names(3)
    blocks = pool.allocate(3)
    for i in (0, 2):
        pool.register(blocks[i], chain[i])
    assert pool.lookup(chain) == blocks[:1]


def test_same_content_twice() -> None:
    """Two requests that computed the same block: the first keeps the name, the second is an ordinary block."""
    pool, [name] = BlockPool(2), names(1)
    blocks = pool.allocate(2)
    for block in blocks:
        pool.register(block, name)
    assert pool.lookup([name]) == blocks[:1]
    pool.release(blocks)
    pool.check_integrity([])


def test_names_depend_on_the_whole_chain_and_the_salt() -> None:
    tokens = np.arange(16, dtype=np.int32)
    assert hash_block(b"a", tokens) != hash_block(b"b", tokens)
    assert hash_block(b"a", tokens) != hash_block(b"a", tokens[::-1].copy())
    assert not set(names(3)) & set(names(3, b"salt"))


def test_integrity_check_sees_damage() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    with pytest.raises(AssertionError):
        pool.check_integrity([blocks[:1]])
    with pytest.raises(AssertionError):
        pool.check_integrity([blocks, blocks[:1]])
    pool.release(blocks)
    with pytest.raises(AssertionError):
        pool.release(blocks)
