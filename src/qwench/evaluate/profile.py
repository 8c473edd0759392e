"""Where a step's time goes, op by op, beside the least time that this machine could take for it.

Each round measures memory, caches and arithmetic, then reads the prompts of all users and decodes for them, straight
through the executor: no scheduler, no sampler. An op's bound is the longest of what memory, caches and arithmetic need
for it; its share of the ceiling is the bound over the measured time. Medians over rounds count. Knows no text and no
files; called by `qwench bench --profile`.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qwench.errors import TargetError
from qwench.evaluate.cost import Cost, CostModel, Limits, StepShape
from qwench.evaluate.machine import Machine
from qwench.evaluate.throughput import Workload, longest_answer, read_megabytes
from qwench.program.cache_groups import most_blocks
from qwench.program.ops import Op
from qwench.runtime.engine import Engine
from qwench.targets.target import Int32, StepBatch, TimedExecutor

MIN_CACHED_MEGABYTES = 4  # less is read faster than threads start


@dataclass(frozen=True)
class OpProfile:
    """One op in one step, or in the steps that read the prompts.

    name, kind, layer: as in the Program; layer is None outside the layers. kernel: what served it.
    seconds: measured; phases: the same, split by what the target made of the op; an op that was merged into another's
    phases has 0 and none. weight_bytes, kv_bytes: moved from memory or to it; activation_bytes: read and written, in
    caches; bytes: all three. operations: multiply and add count as two; arithmetic: their kind, such as int8 or fp32,
    None if there are none. bound: "memory", "cache" or "arithmetic", whichever needs longest, and bound_s: how long.
    share: bound_s over seconds, 0 where seconds is. All are medians over rounds, ratios of each round's own.
    """

    name: str
    kind: str
    layer: int | None
    kernel: str
    seconds: float
    phases: dict[str, float]
    weight_bytes: float
    kv_bytes: float
    activation_bytes: float
    bytes: float
    operations: float
    arithmetic: str | None
    bound: str
    bound_s: float
    share: float


@dataclass(frozen=True)
class StepProfile:
    """Reading the prompts of all users, in `num_steps` steps, or one decode step, the mean of those of the answer.

    num_tokens: computed in it. seconds: from call to return; between_s: of them, in no op; bound_s: of all ops, one
    after the other; share: bound_s over seconds.
    """

    num_tokens: int
    num_steps: int
    seconds: float
    between_s: float
    bound_s: float
    share: float
    ops: tuple[OpProfile, ...]


@dataclass(frozen=True)
class Profile:
    """limits: the medians of what the machine allowed."""

    limits: Limits
    prefill: StepProfile
    decode: StepProfile


@dataclass(frozen=True)
class _Round:
    """What the machine allowed, the wall time of some steps, and op -> phase -> seconds in them."""

    limits: Limits
    seconds: float
    op_seconds: Mapping[str, Mapping[str, float]]


def measure_profile(engine: Engine, costs: CostModel, machine: Machine, workload: Workload) -> Profile:
    """`num_rounds` rounds after one that only warms up.

    Raises ConfigError if the workload doesn't fit, and TargetError if the target has no clock for its ops.
    """
    longest_answer(engine, workload)
    executor = engine.executor
    if not isinstance(executor, TimedExecutor):
        raise TargetError("this target keeps no clock for its ops; profile a model that is compiled for cpu")
    stretches = [
        _Stretch(costs, batches, parts)
        for batches, parts in zip(_batches(engine, workload, 0), (1, workload.num_generate - 1))
    ]
    for number in range(workload.num_rounds + 1):
        limits = _measure_limits(machine, stretches)
        for stretch, batches in zip(stretches, _batches(engine, workload, workload.seed + number)):
            stretch.rounds.append(_run(executor, batches, limits))
    kernels = executor.kernels()
    prefill, decode = (stretch.summarise(kernels) for stretch in stretches)
    return Profile(_median_limits([r.limits for r in stretches[0].rounds[1:]]), prefill, decode)


class _Stretch:
    """Steps that are measured together, what they cost, and their rounds. Counts as `parts` equal parts."""

    def __init__(self, costs: CostModel, batches: Sequence[StepBatch], parts: int) -> None:
        shapes = [_shape(batch) for batch in batches]
        buffers = costs.program.buffers  # nobody asks for hidden states here, so their ops have nothing to do
        self.ops = [op for op in costs.program.ops if not op.output or buffers[op.output].rows != "hidden"]
        self.parts = parts
        self.num_tokens, self.num_steps = sum(shape.num_tokens for shape in shapes) // parts, len(batches) // parts
        self.costs = [sum((costs.of_op(op, shape) for shape in shapes), Cost()).per(parts) for op in self.ops]
        self.rounds: list[_Round] = []

    def summarise(self, kernels: Mapping[str, str]) -> StepProfile:
        """Medians over all rounds but the first."""
        rounds = self.rounds[1:]
        bounds = [sum(cost.seconds(r.limits) for cost in self.costs) for r in rounds]
        seconds = [r.seconds / self.parts for r in rounds]
        in_ops = [sum(sum(phases.values()) for phases in r.op_seconds.values()) / self.parts for r in rounds]
        return StepProfile(
            self.num_tokens,
            self.num_steps,
            statistics.median(seconds),
            statistics.median(s - within for s, within in zip(seconds, in_ops)),
            statistics.median(bounds),
            statistics.median(b / s for b, s in zip(bounds, seconds)),
            tuple(self._summarise_op(op, cost, kernels[op.name], rounds) for op, cost in zip(self.ops, self.costs)),
        )

    def _summarise_op(self, op: Op, cost: Cost, kernel: str, rounds: Sequence[_Round]) -> OpProfile:
        phases = {
            phase: statistics.median(r.op_seconds[op.name][phase] / self.parts for r in rounds)
            for phase in rounds[0].op_seconds[op.name]
        }
        seconds = [sum(r.op_seconds[op.name].values()) / self.parts for r in rounds]
        bounds = [cost.seconds(r.limits) for r in rounds]
        times = cost.times(_median_limits([r.limits for r in rounds]))
        assert len(cost.operations) <= 1, "one op, one kind of arithmetic"
        layer = re.match(r"layers\.(\d+)\.", op.name)
        return OpProfile(
            op.name,
            op.kind,
            int(layer[1]) if layer else None,
            kernel,
            statistics.median(seconds),
            phases,
            cost.weight_bytes,
            cost.kv_bytes,
            cost.activation_bytes,
            cost.memory_bytes + cost.activation_bytes,
            sum(cost.operations.values()),
            next(iter(cost.operations), None),
            max(times, key=lambda resource: times[resource]),
            statistics.median(bounds),
            statistics.median(b / s if s else 0.0 for b, s in zip(bounds, seconds)),
        )


def _batches(engine: Engine, workload: Workload, seed: int) -> tuple[list[StepBatch], list[StepBatch]]:
    """Steps that read random prompts, and steps that decode random answers to them, one token a user."""
    users, prompt = workload.num_users, workload.num_prompt
    length = prompt + workload.num_generate
    tokens = np.random.default_rng(seed).integers(0, engine.vocab_size, (users, length), np.int32)
    tables = block_tables(engine, users, length)
    decode = [
        StepBatch(
            np.ascontiguousarray(tokens[:, at]),
            np.arange(users + 1, dtype=np.int32),
            np.full(users, at + 1, np.int32),
            tables,
            np.arange(users, dtype=np.int32),
        )
        for at in range(prompt, length - 1)
    ]
    return _prefill(tokens[:, :prompt], tables, engine.scheduler.max_step_tokens), decode


def block_tables(engine: Engine, users: int, length: int) -> Int32:
    """[users, num_groups * blocks]: blocks of their own for each; behind a window they are used again, in a circle."""
    scheduler, size = engine.scheduler, engine.cache.block_size
    tables, taken = [], 0
    for _ in range(users):
        for window in scheduler.windows:
            count = most_blocks((window,), length, size, scheduler.max_step_tokens)
            tables.append(taken + np.arange(-(-length // size), dtype=np.int32) % count)
            taken += count
    return np.concatenate(tables).reshape(users, -1)


def _prefill(prompts: Int32, tables: Int32, step_tokens: int) -> list[StepBatch]:
    """prompts: [users, length], read one after the other in steps of `step_tokens`."""
    length = prompts.shape[1]
    batches = []
    for start in range(0, prompts.size, step_tokens):
        stop = min(start + step_tokens, prompts.size)
        users = np.arange(start // length, -(-stop // length))
        ends = np.minimum((users + 1) * length, stop)
        batches.append(
            StepBatch(
                prompts.reshape(-1)[start:stop],
                np.concatenate([[0], ends - start]).astype(np.int32),
                (ends - users * length).astype(np.int32),
                tables[users],
                (ends[ends % length == 0] - start - 1).astype(np.int32),
            )
        )
    return batches


def _shape(batch: StepBatch) -> StepShape:
    return StepShape(np.diff(batch.query_start).tolist(), batch.seq_lens.tolist(), len(batch.logit_rows))


def _measure_limits(machine: Machine, stretches: Sequence[_Stretch]) -> Limits:
    """What this moment allows. Memory is read as much at a time as the last stretch, decoding, reads in one step."""
    in_memory = sum(cost.memory_bytes for cost in stretches[-1].costs)
    in_caches = max(cost.activation_bytes / s.num_steps for s in stretches for cost in s.costs)
    kinds = sorted({kind for stretch in stretches for cost in stretch.costs for kind in cost.operations})
    return Limits(
        machine.read_gbps(read_megabytes(in_memory)),
        {kind: machine.peak_gops(kind) for kind in kinds},
        machine.read_gbps(max(read_megabytes(in_caches), MIN_CACHED_MEGABYTES)),
    )


def _median_limits(limits: Sequence[Limits]) -> Limits:
    return Limits(
        statistics.median(each.read_gbps for each in limits),
        {kind: statistics.median(each.peak_gops[kind] for each in limits) for kind in limits[0].peak_gops},
        statistics.median(each.cached_gbps for each in limits),
    )


def _run(executor: TimedExecutor, batches: Sequence[StepBatch], limits: Limits) -> _Round:
    before = executor.op_seconds()
    start = time.perf_counter()
    for batch in batches:
        executor.step(batch)
    seconds = time.perf_counter() - start
    after = executor.op_seconds()
    spent = {op: {phase: s - before[op][phase] for phase, s in phases.items()} for op, phases in after.items()}
    return _Round(limits, seconds, spent)
