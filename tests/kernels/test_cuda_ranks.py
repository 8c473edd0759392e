"""Ranks with devices of their own, in Triton's interpreter: the bits of one, whatever the shares, formats and caches.

The ranks of a test are threads of one process, of which one computes at a time: the interpreter takes no more.
"""

from __future__ import annotations

import dataclasses
import threading
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from programs import Tensors, batch, load, model_program, pack, random_spec, random_tensors

from qwench.formats import Format
from qwench.parallel.block_parts import BlockParts
from qwench.parallel.team_memory import TeamMemory
from qwench.program.memory import plan_memory
from qwench.program.ops import Program
from qwench.program.shard import Shares, shard
from qwench.targets.cuda.devices.window_communicator import WindowCommunicator
from qwench.targets.cuda.ranks.rank import CudaRank
from qwench.targets.registry import get_target
from qwench.targets.target import CacheConfig, Executor, StepBatch, Team

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: pip install 'qwench[cuda]'")
TARGET = "cuda-interpreter"
SMALL: dict[str, Any] = {"num_layers": 1, "hidden_size": 66, "intermediate_size": 40, "vocab_size": 130}


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> threading.Lock:
    """Held by the rank that computes, and given up where it waits for the others."""
    lock, wait = threading.Lock(), WindowCommunicator._wait

    def wait_without(self: WindowCommunicator) -> None:
        lock.release()
        try:
            wait(self)
        finally:
            lock.acquire()

    monkeypatch.setattr(WindowCommunicator, "_wait", wait_without)
    return lock


def load_ranks(program: Program, tensors: Tensors, cache: CacheConfig, shares: Shares) -> list[CudaRank]:
    target, plan, size = get_target(TARGET), plan_memory(program, 96), len(shares.parts)
    shared, packed = TeamMemory.of(program, plan, cache, size), pack(target, program, tensors)
    memory = np.zeros(shared.native_bytes, np.uint8)
    ranks = [
        target.load(
            shard(program, shares, rank), plan, packed, cache, 1, Team(memory, shared.mail_bytes, rank, (1,) * size)
        )
        for rank in range(size)
    ]  # fmt: skip
    return [rank for rank in ranks if isinstance(rank, CudaRank)]


def on_all(ranks: list[CudaRank], turns: threading.Lock, call: Callable[[CudaRank], Any]) -> list[Any]:
    """What each gives, or the error that it raises."""
    results: list[Any] = [None] * len(ranks)

    def run(number: int) -> None:
        with turns:
            try:
                results[number] = call(ranks[number])
            except Exception as error:  # whatever it is, the others must not wait for this one
                ranks[number].channel.lose(number)
                results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize(
    ("fmt", "activations", "cache", "heads", "parts"),
    [
        (Format("int8", 32), "int8", "int8", (6, 2), (1, 1, 1)),  # ranks 0 and 1 keep a kv head, as 1 and 2 do
        (Format("int4", 32, "fp16", "zero"), "int16", "bf16", (5, 5), (3, 1)),
    ],
    ids=str,
)  # fmt: skip
def test_the_bits_are_those_of_one_rank(
    fmt: Format, activations: str, cache: str, heads: tuple[int, int], parts: tuple[int, ...], turns: threading.Lock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A mixed batch, then a step that is recorded; with heads that share panels of q, k and v, and ranks that have no
    output of some products. Then a step that one refuses, which ends it for all."""
    rng = np.random.default_rng(zlib.crc32(f"{fmt} {parts}".encode()))
    spec = random_spec(
        rng, model_type="qwen3" if cache == "bf16" else "qwen2", num_heads=heads[0], num_kv_heads=heads[1], head_dim=18,
        sliding_windows=(None,), **SMALL,
    )  # fmt: skip
    program = model_program(spec, fmt, activations)
    tensors, config = random_tensors(program, rng, std=0.1), CacheConfig(12, 16, cache, partition_len=64)
    tokens = [rng.integers(0, 130, n).astype(np.int32) for n in (2, 1)]
    steps = [batch(tokens, [2, 1], [[3], [5]]), batch([tokens[1]], [3], [[3]])]
    one = load(TARGET, program, tensors, config)
    ranks = load_ranks(program, tensors, config, Shares(parts, (len(parts),)))
    steps[1] = dataclasses.replace(steps[1], top_groups=np.ones(1, np.int32))  # of whose logits one group is asked for

    def compute(executor: Executor, step: StepBatch) -> tuple[np.ndarray, np.ndarray]:
        """Logits and maxima."""
        results = np.zeros((3, 130), np.float32), np.zeros((3, 3), np.float32)
        executor.step(step, results[0], None, results[1])
        return results

    for step in steps:
        got = on_all(ranks, turns, lambda rank, step=step: compute(rank, step))
        for of_ranks, of_one in zip(got[0], compute(one, step), strict=True):
            np.testing.assert_array_equal(of_ranks.view(np.uint32), of_one.view(np.uint32))
    whole = np.zeros(config.block_bytes(program), np.uint8)
    for rank in ranks:
        BlockParts.of(rank.program).put(rank.read_block(3), whole)
    np.testing.assert_array_equal(whole, one.read_block(3))

    closed: list[int] = []
    monkeypatch.setattr(WindowCommunicator, "close", lambda self: closed.append(self.rank))
    refused = dataclasses.replace(steps[1], adapters=np.zeros(1, np.int32))
    errors = on_all(ranks, turns, lambda rank: rank.step(refused if rank is ranks[0] else steps[1]))
    assert "no adapter" in str(errors[0])
    assert [str(error) for error in errors[1:]] == ["a rank was lost"] * (len(ranks) - 1)
    assert set(closed) == set(range(len(ranks)))
