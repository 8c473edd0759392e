"""Calibration: runs a model over a text, op by op, and quantises each matrix for the inputs that it gets there.

Runs the Program with the reference ops in fp32 and holds only the activations that later ops still read; the inputs of
a matrix are computed with the quantised matrices before it, as in GPTQ. The compiler asks for one weight after the
other, in the order of the Program, and packs the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qwench.calibration.gptq import quantize_for_inputs
from qwench.formats import BF16, Float32, dequantize_weight
from qwench.program.ops import EXPERT_PRODUCTS, Op, Program, Weight, matrices_of
from qwench.program.rope import cos_sin, inverse_frequencies
from qwench.quantized_matrix import QuantizedMatrix
from qwench.targets.reference.cache import PlainCache
from qwench.targets.reference.ops import OPS, Matrix, StepState, experts_of_rows
from qwench.targets.target import Array, Int32

ROWS_AT_ONCE = 4  # of tokens, in one call of a reference op


class Calibrator:
    """read: the checkpoint tensor of a name. rows: [num_rows, length] int32, each a sequence of its own."""

    def __init__(self, program: Program, read: Callable[[str], Array], rows: Int32) -> None:
        self._program, self._read = program, read
        self._quantized: dict[str, Matrix] = {}
        self._next = 0
        self._last_reader = {name: op.name for op in program.ops for name in op.inputs}
        parts = [rows[i : i + ROWS_AT_ONCE] for i in range(0, len(rows), ROWS_AT_ONCE)]
        self._states = [_state(program, part) for part in parts]
        self._buffers: dict[str, list[Any]] = {}

    def wants(self, weight: Weight) -> bool:
        """Whether it is calibrated: a quantised matrix that only matrix products read, not an embedding table."""
        readers = [op for op in self._program.ops if weight.name in op.weights]
        return weight.format.is_quantized and all(weight.name in matrices_of(op) for op in readers)

    def quantize(self, weight: Weight) -> list[QuantizedMatrix]:
        """The matrix for `Target.pack`, in halves if it is paired. Ask in the order of the Program's ops."""
        op = self._advance_to(weight)
        values = self._stack(weight).astype(np.float32)
        is_expert = op.kind in EXPERT_PRODUCTS
        inputs = self._rows_of_expert(op, op.weights.index(weight.name)) if is_expert else self._buffers[op.inputs[0]]
        codes, scales = quantize_for_inputs(values, _moments(inputs), weight.format)
        if is_expert:  # of which there are many before the op can run: they stay codes
            self._quantized[weight.name] = Matrix(weight.format, codes, scales, activations="fp32")
        else:
            self._quantized[weight.name] = Matrix(BF16, dequantize_weight(codes, scales, weight.shape[1]))
        parts = zip(*(np.split(part, 2 if weight.paired else 1) for part in (codes[:, : weight.shape[1]], scales)))
        return [QuantizedMatrix(weight.format, *part) for part in parts]

    def _advance_to(self, weight: Weight) -> Op:
        """Runs the ops before the one that reads `weight`."""
        for op in self._program.ops[self._next :]:
            if weight.name in op.weights:
                return op
            self._run(op)
            self._next += 1
        raise AssertionError(f"{weight.name} was asked for too late")

    def _run(self, op: Op) -> None:
        weights = [self._weight(op, name) for name in op.weights]
        outputs = []
        for i, state in enumerate(self._states):
            inputs = [self._buffers[name][i] for name in op.inputs]
            outputs.append(OPS[op.kind](state, op.attrs, *inputs, *weights))
        self._buffers[op.output] = outputs
        for name in op.inputs:
            if self._last_reader[name] == op.name:
                self._buffers.pop(name, None)

    def _rows_of_expert(self, op: Op, expert: int) -> list[Float32]:
        rows, routes = (self._buffers[name] for name in op.inputs[:2])
        return [
            x[experts_of_rows(state, of_tokens) == expert] for x, of_tokens, state in zip(rows, routes, self._states)
        ]

    def _weight(self, op: Op, name: str) -> Matrix | Float32:
        if (quantized := self._quantized.pop(name, None)) is not None:
            return quantized
        weight = self._program.weights[name]
        values = self._stack(weight)
        if op.kind == "embed":
            return Matrix(BF16, values)  # a large table, of which the op widens the rows that it takes
        return values.astype(np.float32) if weight.is_vector else Matrix(BF16, values.astype(np.float32))

    def _stack(self, weight: Weight) -> Array:
        sources = [self._read(source) for source in weight.sources]
        return sources[0] if len(sources) == 1 else np.concatenate([s.astype(np.float32) for s in sources])


def _moments(inputs: Sequence[Float32]) -> Float32:
    """The mean of x^T x over all rows, zeros if there are none: [width, width]."""
    total = np.zeros((inputs[0].shape[1],) * 2, np.float32)
    for x in inputs:
        total += x.T @ x
    result: Float32 = total / np.float32(max(sum(len(x) for x in inputs), 1))
    return result


def _state(program: Program, rows: Int32) -> StepState:
    """A step that reads `rows` [num_rows, length] from their beginning. Layers share one cache: each writes all of it
    before it reads."""
    spec = program.spec
    num_rows, length = rows.shape
    positions = np.tile(np.arange(length, dtype=np.int64), num_rows)
    slots = np.arange(rows.size, dtype=np.int64)
    spans = [slice(i * length, (i + 1) * length) for i in range(num_rows)]
    table = cos_sin(*inverse_frequencies(spec.rope, spec.head_dim), 0, length)[positions]
    cache = PlainCache((rows.size, spec.num_kv_heads, spec.head_dim), np.float32)
    everything, nothing = np.arange(rows.size, dtype=np.int32), np.empty(0, np.int32)
    return StepState(
        spec, rows.reshape(-1), np.empty((0, spec.hidden_size), np.float32), positions,
        [slots] * spec.num_layers, [[(span, slots[span]) for span in spans]] * spec.num_layers,
        {"logits": everything, "hidden": nothing}, table, [cache] * spec.num_layers,
    )  # fmt: skip
