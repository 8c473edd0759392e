"""`python -m benchmarks.kv_cache CHECKPOINT`: what an 8-bit KV cache costs in fidelity and gives in speed.

Fidelity: the correlation (PCC) of each token's logits with those of the reference target on an fp32 cache, over prompts
of random tokens. Beside the caches there are stands a naive one in 8 bits, which quantises keys with their bias.

Speed: steps that give each user one more token at some length of context, the caches taking turns, so that all of them
meet the same moments of a shared machine; ratios are taken within a round, medians count. The cache is that of a
prompt of 512 tokens, copied as often as the context is longer.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from unittest.mock import patch

import numpy as np

from qwench.config import QwenchConfig
from qwench.host import cpu_name
from qwench.load import resolve_model
from qwench.runtime.loading import CompiledModel
from qwench.targets.reference.target import ReferenceExecutor
from qwench.targets.registry import get_target
from qwench.targets.target import CacheConfig, Executor, Float32, Int32, StepBatch

NUM_FILLED = 512  # positions of the context that are computed
BLOCK = 32


def load(model: CompiledModel, cache: str, num_positions: int) -> Executor:
    """An executor whose cache has room for so many positions."""
    config = CacheConfig(-(-num_positions // BLOCK), BLOCK, cache)
    assert model.config.target
    return get_target(model.config.target).load(model.program, model.plan, model.tensors, config, 2)


def one_sequence(tokens: Int32, wanted: Int32) -> StepBatch:
    """A step with all of a prompt, in the first blocks."""
    length = np.array([len(tokens)], np.int32)
    table = np.arange(-(-len(tokens) // BLOCK), dtype=np.int32)[None]
    return StepBatch(tokens, np.array([0, len(tokens)], np.int32), length, table, wanted)


def logits_of(executor: Executor, prompts: Sequence[Int32]) -> Iterator[Float32]:
    """Of each prompt [tokens, vocabulary], one after the other."""
    for prompt in prompts:
        yield executor.step(one_sequence(prompt, np.arange(len(prompt), dtype=np.int32)))


def pccs(got: Float32, expected: Float32) -> list[float]:
    """Of each row."""
    a, b = (x - x.mean(axis=1, keepdims=True, dtype=np.float64) for x in (got, expected))
    return list((a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1)))


def print_fidelity(checkpoint: str, num_prompts: int, num_tokens: int) -> None:
    """A line for each target and cache."""
    rng = np.random.default_rng(0)
    models = {
        name: resolve_model(checkpoint, QwenchConfig(target=name, max_seq_len=1024)) for name in ("reference", "cpu")
    }
    vocab = models["reference"].program.spec.vocab_size
    prompts = [rng.integers(0, vocab, num_tokens).astype(np.int32) for _ in range(num_prompts)]

    def make(target: str, cache: str) -> Executor:
        return load(models[target], cache, num_tokens)

    executors = {f"{t} {c}": make(t, c) for t in models for c in ("fp32", "bf16", "int16", "int8")}
    with patch.object(ReferenceExecutor, "key_bias", lambda self, op: np.zeros(self.program.spec.kv_size, np.float32)):
        executors["reference int8, naive"] = make("reference", "int8")
    found: dict[str, list[float]] = {name: [] for name in executors}
    for rows in zip(*(logits_of(executor, prompts) for executor in executors.values()), strict=True):
        for name, got in zip(executors, rows, strict=True):
            found[name] += pccs(got, rows[0])
    print(f"PCC with the reference on an fp32 cache, {num_prompts} prompts of {num_tokens} tokens")
    print(f"{'target and cache':24} {'worst token':>12} {'median':>12}")
    for name, values in found.items():
        print(f"{name:24} {min(values):12.6f} {statistics.median(values):12.6f}")


def with_context(model: CompiledModel, cache: str, context: int, num_users: int) -> Executor:
    """An executor whose cache holds `context` positions for each user."""
    executor = load(model, cache, (-(-context // BLOCK) + 1) * BLOCK * num_users)
    num_filled = min(NUM_FILLED, context)
    prompt = np.random.default_rng(0).integers(0, model.program.spec.vocab_size, num_filled).astype(np.int32)
    executor.step(one_sequence(prompt, np.array([num_filled - 1], np.int32)))
    filled = num_filled // BLOCK
    rest = range(filled, (-(-context // BLOCK) + 1) * num_users)
    executor.copy_blocks([i % filled for i in rest], list(rest))
    return executor


def print_speed(checkpoint: str, weights: str, context: int, num_users: int, num_rounds: int) -> None:
    """A line for each cache."""
    model = resolve_model(checkpoint, QwenchConfig(weights=weights, max_seq_len=32768))
    blocks = -(-context // BLOCK) + 1
    executors = {cache: with_context(model, cache, context, num_users) for cache in ("bf16", "int16", "fp32", "int8")}
    users = np.arange(num_users + 1, dtype=np.int32)
    step = StepBatch(
        users[:-1], users, np.full(num_users, context, np.int32),
        np.arange(blocks * num_users, dtype=np.int32).reshape(num_users, blocks), users[:-1],
    )  # fmt: skip
    seconds: dict[str, list[float]] = {cache: [] for cache in executors}
    for number in range(num_rounds + 1):
        for cache, executor in executors.items():
            start = time.perf_counter()
            executor.step(step)
            if number:  # the first only warms up
                seconds[cache].append(time.perf_counter() - start)
    print(f"{weights} weights, context {context}, users {num_users}")
    for cache, times in seconds.items():
        ratio = statistics.median(b / t for b, t in zip(seconds["bf16"], times, strict=True))
        size = CacheConfig(1, BLOCK, cache).block_bytes(model.program) // BLOCK
        rate = num_users / statistics.median(times)
        print(f"  {cache}: {rate:7.1f} tokens/s, {ratio:.2f} of bf16; {size} bytes a position")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kv_cache", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=50, help="in a prompt; 0: no fidelity")
    parser.add_argument("--weights", default="int8", help="where speed is measured (default: %(default)s)")
    parser.add_argument("--speed", action="append", default=[], metavar="USERSxCONTEXT", help="such as 16x2048")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args(argv)
    print(cpu_name())
    if args.tokens:
        print_fidelity(args.checkpoint, args.prompts, args.tokens)
    for case in args.speed:
        users, context = map(int, case.split("x"))
        print_speed(args.checkpoint, args.weights, context, users, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
