"""How fast a model runs, beside how fast this machine could run it: both measured in the same minutes.

The ceiling is what memory and arithmetic allow: a step can't be faster than reading the weights and the cache once, nor
than its multiplications at the measured peak. On a shared machine both change from minute to minute, so each
round measures ceiling and model one after the other, and ratios are taken within a round. Knows no text and no files;
called by `qwench bench`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qwench.errors import ConfigError
from qwench.program.ops import Program
from qwench.runtime.engine import Engine
from qwench.runtime.request import SamplingParams

MAX_READ_MEGABYTES = 512  # beyond every cache; a smaller model is measured against reading its own size
ARITHMETIC = {"fp32": "fp32", "bf16": "fp32", "int8": "int8", "int4": "int8"}  # weight format -> what multiplies it


@dataclass(frozen=True)
class Workload:
    """`num_users` random prompts of `num_prompt` tokens at once, each answered with `num_generate` tokens."""

    num_prompt: int = 512
    num_generate: int = 64
    num_users: int = 1
    num_rounds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("num_prompt", 1), ("num_generate", 2), ("num_users", 1), ("num_rounds", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}; a benchmark needs at least {low}")


@dataclass(frozen=True)
class Speed:
    """What one round reached. prefill: all prompt tokens over the time to the last user's first token; decode: tokens
    after that over the time they took, all users together."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    ttft_s: float


@dataclass(frozen=True)
class Ceiling:
    """What the machine allowed in one round: memory read [GB/s], arithmetic [GOPS], and the tokens/s they imply."""

    read_gbps: float
    peak_gops: dict[str, float]
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True)
class Round:
    """Ceiling and speed of the same moment."""

    ceiling: Ceiling
    speed: Speed


@dataclass(frozen=True)
class Machine:
    """How to measure this machine with as many threads as the model uses.

    read_gbps(megabytes): reading a buffer of that size. peak_gops(kind): multiply and add count as two.
    """

    read_gbps: Callable[[int], float]
    peak_gops: Callable[[str], float]


@dataclass(frozen=True)
class Cost:
    """What one step must do, whoever computes it: operations per kind of arithmetic, and bytes read from memory."""

    operations: dict[str, float]
    read_bytes: float

    def seconds(self, peak_gops: dict[str, float], read_gbps: float) -> float:
        arithmetic_s = sum(count / (peak_gops[kind] * 1e9) for kind, count in self.operations.items())
        return max(arithmetic_s, self.read_bytes / (read_gbps * 1e9))


def step_cost(
    program: Program, weight_bytes: dict[str, int], cache_bytes: float, new: Sequence[int], context: Sequence[int]
) -> Cost:
    """The cost of one step in which sequence s gets `new[s]` tokens, of `context[s]` tokens then, and one logits row.

    weight_bytes: packed size of each weight. cache_bytes: what one position of the KV cache takes, all layers.
    """
    operations: dict[str, float] = {}
    read_bytes = cache_bytes * sum(context)
    for op in program.ops:
        if op.kind == "embed":
            continue  # reads a few rows
        rows = len(new) if op.output and program.buffers[op.output].rows == "logits" else sum(new)
        for weight in (program.weights[name] for name in op.weights):
            read_bytes += weight_bytes[weight.name]
            if not weight.is_vector:
                kind = ARITHMETIC[weight.format.kind]
                operations[kind] = operations.get(kind, 0) + 2.0 * rows * weight.shape[0] * weight.shape[1]
        if op.kind == "attention":
            visible = sum(_visible_positions(n, c, op.attrs["window"]) for n, c in zip(new, context))
            operations["fp32"] = operations.get("fp32", 0) + 4.0 * program.spec.q_size * visible
    return Cost(operations, read_bytes)


def _visible_positions(new: int, context: int, window: int | None) -> int:
    """Pairs (query, key) that causal attention of the last `new` of `context` tokens looks at."""
    lengths = range(context - new + 1, context + 1)
    return sum(min(length, window) for length in lengths) if window else sum(lengths)


def run_round(engine: Engine, workload: Workload, seed: int) -> Speed:
    """Sends the workload through the engine. Raises RequestError if it doesn't fit, and what made a request fail."""
    shape = (workload.num_users, workload.num_prompt)
    prompts = np.random.default_rng(seed).integers(0, engine.vocab_size, shape).astype(np.int32)
    params = SamplingParams(max_tokens=workload.num_generate, temperature=0, ignore_eos=True)
    started_s = time.perf_counter()
    waiting = {engine.add_request(prompt, params) for prompt in prompts}
    while waiting:
        waiting -= {request_id for request_id, _ in _step(engine)}
    first_s = time.perf_counter()
    num_decoded = 0
    while engine.has_unfinished():
        num_decoded += len(_step(engine))
    decode_s = time.perf_counter() - first_s
    ttft_s = first_s - started_s
    return Speed(prompts.size / ttft_s, num_decoded / decode_s, ttft_s)


def _step(engine: Engine) -> list[tuple[str, int]]:
    """One step's (request id, token) pairs; raises the error of a request that failed."""
    outputs = engine.step()
    for output in outputs:
        if output.error is not None:
            raise output.error
    return [(output.request_id, output.token_id) for output in outputs if output.token_id is not None]


def measure_throughput(
    engine: Engine, program: Program, weight_bytes: dict[str, int], machine: Machine, workload: Workload
) -> list[Round]:
    """`num_rounds` rounds after one that only warms up. Raises ConfigError for more users than the engine takes."""
    if workload.num_users > engine.max_num_seqs:
        raise ConfigError(
            f"{workload.num_users} users at once, but the model was compiled for batch_size {engine.max_num_seqs}; ask "
            "for fewer or compile with a larger batch_size"
        )
    rounds = []
    for number in range(workload.num_rounds + 1):
        ceiling = _measure_ceiling(engine, program, weight_bytes, machine, workload)
        speed = run_round(engine, workload, workload.seed + number)  # new prompts: nothing is found in the cache
        rounds.append(Round(ceiling, speed))
    return rounds[1:]


def _measure_ceiling(
    engine: Engine, program: Program, weight_bytes: dict[str, int], machine: Machine, workload: Workload
) -> Ceiling:
    users, prompt = workload.num_users, workload.num_prompt
    cache_bytes = engine.cache.block_bytes(program) / engine.cache.block_size
    middle = prompt + workload.num_generate // 2
    prefill = step_cost(program, weight_bytes, cache_bytes, [prompt] * users, [prompt] * users)
    decode = step_cost(program, weight_bytes, cache_bytes, [1] * users, [middle] * users)
    megabytes = min(max(1, int(decode.read_bytes / 1e6)), MAX_READ_MEGABYTES)
    read_gbps = machine.read_gbps(megabytes)
    peak_gops = {kind: machine.peak_gops(kind) for kind in sorted(prefill.operations)}
    return Ceiling(
        read_gbps,
        peak_gops,
        users * prompt / prefill.seconds(peak_gops, read_gbps),
        users / decode.seconds(peak_gops, read_gbps),
    )


def median(rounds: Sequence[Round], value: Callable[[Round], float]) -> float:
    """The median of `value` over rounds."""
    return statistics.median(map(value, rounds))
