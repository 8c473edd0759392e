"""The bits of a token's logits don't depend on the batch, the chunks, the blocks or the number of threads."""

from __future__ import annotations

import numpy as np
import pytest
from programs import VARIANTS, batch, load, model_program, num_groups, random_spec, random_tensors

from qwench.formats import BF16, Format
from qwench.targets.target import CacheConfig

PRODUCTS = [(BF16, "fp32"), (BF16, "bf16"), (Format("int8", 128), "int8"), (Format("int4", 128), "int8")]
INT16 = [(Format("int8", 32), "int16"), (Format("int4", 128), "int16")]


# Products know nothing of the cache: for int16's, two of its formats will do.
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("fmt", "activations", "cache_dtype"),
    [(*product, cache_dtype) for product in PRODUCTS for cache_dtype in ("fp32", "bf16", "int16", "int8")]
    + [(*product, cache_dtype) for product in INT16 for cache_dtype in ("int16", "int8")],
    ids=str,
)
def test_bits_are_those_of_the_request_alone(variant: str, fmt: Format, activations: str, cache_dtype: str) -> None:
    rng = np.random.default_rng(7)
    spec = random_spec(rng, vocab_size=90, head_dim=24, num_heads=6, num_kv_heads=2)
    program = model_program(spec, fmt, activations)
    tensors = random_tensors(program, rng, std=0.1)
    ids = rng.integers(0, 90, 84).astype(np.int32)

    def run(chunks: list[int], threads: int, neighbours: int, block_size: int, first_block: int) -> np.ndarray:
        blocks_each = -(-84 // block_size)
        rounds = activations == "bf16" and cache_dtype == "bf16"
        num_blocks = (neighbours + 2) * blocks_each + first_block
        cache = CacheConfig(num_blocks, block_size, cache_dtype, rounds_queries=rounds)
        executor = load(variant, program, tensors, cache, threads, tokens=84 + 84 * neighbours)
        tables = [
            list(range(first_block + i * blocks_each, first_block + (i + 1) * blocks_each))
            for i in range(neighbours + 1)
        ]
        others = [np.roll(ids, i + 1) for i in range(neighbours)]
        rows, done = [], 0
        for size in chunks:
            parts = [ids[done : done + size], *[o[done : done + size] for o in others]]
            done += size
            # The request comes last, so that its rows start at an odd place in the tiles.
            step = batch(parts[::-1], [done] * (neighbours + 1), tables[::-1], num_groups(spec))
            rows.append(executor.step(step)[-size:].copy())
        return np.concatenate(rows)

    alone = run([84], 1, 0, 16, 0)
    many = 1 if variant == "generic" else 4  # its tiles are of fewer rows, and each takes forty times as long
    for chunks, threads, neighbours, block_size, first_block in [
        ([84], 2, 0, 16, 0),
        ([84], 3, 0, 64, 1),
        ([1] * 84, 2, 0, 16, 0),
        ([64, 20], 1, 0, 32, 3),
        ([83, 1], 2, many, 16, 0),
        ([17, 31, 36], 2, many + 2, 48, 2),
    ]:
        got = run(chunks, threads, neighbours, block_size, first_block)
        np.testing.assert_array_equal(got, alone, err_msg=f"{chunks} threads={threads} neighbours={neighbours}")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cache_dtype", ["fp32", "bf16", "int16", "int8"])
@pytest.mark.parametrize(("window", "partition_len"), [(None, 512), (700, 512), (None, 192), (700, 1344)])
def test_a_long_context_is_split_over_threads_without_a_trace(
    variant: str, cache_dtype: str, window: int | None, partition_len: int
) -> None:
    """Beyond a partition, the partitions of a lone sequence are computed by whoever is free."""
    length = 1300
    if variant == "generic":  # takes forty times as long, so all of it is a quarter, in whole tiles of 64
        length, window, partition_len = 325, window and window // 4, -(-partition_len // 256) * 64
    blocks = -(-length // 32)
    rng = np.random.default_rng(11)
    spec = random_spec(
        rng, vocab_size=50, hidden_size=32, head_dim=16, num_heads=4, num_kv_heads=1, num_layers=2,
        sliding_windows=(window, None), max_position_embeddings=2048,
    )  # fmt: skip
    program = model_program(spec, BF16)
    tensors = random_tensors(program, rng, std=0.3)
    ids = rng.integers(0, 50, length).astype(np.int32)
    cache = CacheConfig(blocks, 32, cache_dtype, partition_len)

    def run(target: str, chunks: list[int], threads: int) -> np.ndarray:
        executor = load(target, program, tensors, cache, threads, tokens=length)
        done = 0
        for size in chunks:
            done += size
            logits = executor.step(batch([ids[done - size : done]], [done], [list(range(blocks))], num_groups(spec)))
        return logits[-1].copy()

    alone = run(variant, [length], 1)
    some = length * 3 // 4
    for chunks, threads in [([length - 1, 1], 2), ([length - 2, 2], 3), ([some, length - some - 1, 1], 2)]:
        np.testing.assert_array_equal(run(variant, chunks, threads), alone, err_msg=f"{chunks} threads={threads}")
    if cache_dtype == "fp32":
        np.testing.assert_allclose(alone, run("reference", [length], 1), rtol=1e-3, atol=1e-3)
