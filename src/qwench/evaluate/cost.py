"""What each op of a Program must do in one step, whoever computes it: bytes moved and operations.

From these and the machine's measured speeds follows the least time a step can take. Knows nothing of engines and
clocks; used by `throughput.py` (whole steps) and `profile.py` (op by op).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qwench.program.memory import buffer_bytes, rows_per_token
from qwench.program.ops import EXPERT_PRODUCTS, Op, Program
from qwench.targets.target import CacheConfig, Target

ATTENTION = "attention"
# What multiplies: by the format of what a matrix meets.
ARITHMETIC: Mapping[str, str] = {"fp32": "fp32", "bf16": "bf16", "int8": "int8", "int16": "int8"}


@dataclass(frozen=True)
class StepShape:
    """One step's work: sequence s gets `new[s]` tokens and then has `context[s]`; `num_logits` rows go to the head."""

    new: Sequence[int]
    context: Sequence[int]
    num_logits: int

    @property
    def num_tokens(self) -> int:
        return sum(self.new)


@dataclass(frozen=True)
class Limits:
    """What the machine was measured to do: read memory [GB/s], compute [GOPS, by kind of arithmetic], and read what
    lies in its caches [GB/s]; the last is infinite where activations are not to count."""

    read_gbps: float
    peak_gops: Mapping[str, float]
    cached_gbps: float = math.inf


@dataclass(frozen=True)
class Cost:
    """What some work must do at least.

    weight_bytes, kv_bytes: come from memory; keys and values of new tokens go there. activation_bytes: what ops hand to
    each other, read and written, which fits a cache. operations: of matrix products and attention, by kind of
    arithmetic, multiply and add counted as two; all others are few.
    """

    weight_bytes: float = 0.0
    kv_bytes: float = 0.0
    activation_bytes: float = 0.0
    operations: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Cost) -> Cost:
        kinds = self.operations.keys() | other.operations.keys()
        return Cost(
            self.weight_bytes + other.weight_bytes,
            self.kv_bytes + other.kv_bytes,
            self.activation_bytes + other.activation_bytes,
            {kind: self.operations.get(kind, 0.0) + other.operations.get(kind, 0.0) for kind in kinds},
        )

    def per(self, parts: int) -> Cost:
        """One of `parts` equal parts."""
        operations = {kind: count / parts for kind, count in self.operations.items()}
        return Cost(self.weight_bytes / parts, self.kv_bytes / parts, self.activation_bytes / parts, operations)

    @property
    def memory_bytes(self) -> float:
        return self.weight_bytes + self.kv_bytes

    def times(self, limits: Limits) -> dict[str, float]:
        """Seconds that each resource alone would take: memory, cache, arithmetic."""
        return {
            "memory": self.memory_bytes / (limits.read_gbps * 1e9),
            "cache": self.activation_bytes / (limits.cached_gbps * 1e9),
            "arithmetic": sum(n / (limits.peak_gops[kind] * 1e9) for kind, n in self.operations.items()),
        }

    def seconds(self, limits: Limits) -> float:
        """The least time: all resources at once, each at its measured speed."""
        return max(self.times(limits).values())


@dataclass(frozen=True)
class CostModel:
    """Costs of one compiled model's ops.

    weight_bytes: packed size of each weight. position_bytes: what one position of the KV cache takes, all layers.
    attention: kind of arithmetic, and how many of its operations one of attention takes.
    """

    program: Program
    weight_bytes: Mapping[str, int]
    position_bytes: float
    attention: tuple[str, int] = ("fp32", 1)

    @classmethod
    def for_target(cls, program: Program, target: Target, cache: CacheConfig) -> CostModel:
        """Weights as `target` packs them, the KV cache as `cache` says."""
        weight_bytes = {
            name: sum(tensor.num_bytes for tensor in target.packed_tensors(weight))
            for name, weight in program.weights.items()
        }
        attention = (cache.attends_in, 1) if cache.attends_in in ("fp32", "bf16") else ("int8", 2)
        return cls(program, weight_bytes, cache.block_bytes(program) / cache.block_size, attention)

    def of_step(self, step: StepShape) -> Cost:
        """All ops together."""
        return sum((self.of_op(op, step) for op in self.program.ops), Cost())

    def of_op(self, op: Op, step: StepShape) -> Cost:
        """One op; nothing for the head's when no logits are asked for, nor for hidden states, which nobody asks for."""
        num_rows = self._num_rows(op, step)
        if num_rows == 0:
            return Cost()
        if op.kind in EXPERT_PRODUCTS:
            return self._of_experts(op, step)
        layer_bytes = self.position_bytes / self.program.spec.num_layers
        buffers = [self.program.buffers[name] for name in (*op.inputs, op.output) if name]
        activations = float(sum(buffer_bytes(buffer, num_rows) for buffer in buffers))
        if op.kind == "embed":
            table = self.program.weights[op.weights[0]]
            return Cost(self.weight_bytes[table.name] * num_rows / table.shape[0], 0.0, activations)
        if op.kind == "attention":
            window = op.attrs["window"]
            read = sum(min(c, window + n - 1) if window else c for n, c in zip(step.new, step.context))
            pairs = sum(_visible_positions(n, c, window) for n, c in zip(step.new, step.context))
            kind, times = self.attention
            operations = {kind: 4.0 * times * self.program.spec.q_size * pairs}
            return Cost(0.0, read * layer_bytes, activations, operations)
        written = step.num_tokens * layer_bytes if op.kind in ("cache_write", "qkv_rope_write") else 0.0
        weights = float(sum(self.weight_bytes[name] for name in op.weights))
        return Cost(weights, written, activations, self._products(op, num_rows))

    def _of_experts(self, op: Op, step: StepShape) -> Cost:
        """Of the experts that tokens choose, as many as there are different ones if they choose at random: for one
        token those that it has."""
        spec, expert = self.program.spec.experts, self.program.weights[op.weights[0]]
        assert spec is not None
        untouched = (1 - spec.top_k / spec.num_experts) ** step.num_tokens
        weights = sum(self.weight_bytes[name] for name in op.weights) * (1 - untouched)
        buffers = [self.program.buffers[name] for name in (*op.inputs, op.output)]
        activations = sum(buffer_bytes(b, step.num_tokens * rows_per_token(self.program, b)) for b in buffers)
        activation = self.program.buffers[op.inputs[0]].format
        rows = step.num_tokens * spec.top_k * activation.num_parts
        operations = {ARITHMETIC[activation.kind]: 2.0 * rows * expert.shape[0] * expert.shape[1]}
        return Cost(float(weights), 0.0, float(activations), operations)

    def _products(self, op: Op, num_rows: int) -> dict[str, float]:
        """Of int16 activations each part is multiplied."""
        operations: dict[str, float] = {}
        for weight in (self.program.weights[name] for name in op.weights):
            if not weight.is_vector:
                activation = self.program.buffers[op.inputs[0]].format
                kind, rows = ARITHMETIC[activation.kind], num_rows * activation.num_parts
                operations[kind] = operations.get(kind, 0.0) + 2.0 * rows * weight.shape[0] * weight.shape[1]
        return operations

    def _num_rows(self, op: Op, step: StepShape) -> int:
        if not op.output:
            return step.num_tokens
        buffer = self.program.buffers[op.output]
        routed = step.num_tokens * rows_per_token(self.program, buffer)
        return {"tokens": step.num_tokens, "routed": routed, "logits": step.num_logits, "hidden": 0}[buffer.rows]


def _visible_positions(new: int, context: int, window: int | None) -> int:
    """Pairs (query, key) that causal attention of the last `new` of `context` tokens looks at."""
    lengths = range(context - new + 1, context + 1)
    return sum(min(length, window) for length in lengths) if window else sum(lengths)
