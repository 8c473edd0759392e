"""The reference target: packs into plain arrays, runs op by op in NumPy fp32. Slow, short, and the specification."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import cast

import ml_dtypes
import numpy as np
import numpy.typing as npt

from qwench.errors import TargetError
from qwench.formats import BF16, quantize_weight, round_to_bf16
from qwench.lora.adapter import LoraAdapter
from qwench.program.cache_groups import cache_groups
from qwench.program.memory import MemoryPlan
from qwench.program.ops import PRODUCTS, Op, Program, Weight, matrices_of
from qwench.program.rope import cos_sin, inverse_frequencies
from qwench.quantized_matrix import QuantizedMatrix
from qwench.targets.adapted_products import AdaptedProduct, adapted_products
from qwench.targets.reference.cache import make_caches
from qwench.targets.reference.ops import OPS, Float32, Lora, Matrix, StepState
from qwench.targets.target import LOGIT_GROUP, Array, Bytes, CacheConfig, Executor, Int32, PackedTensor, StepBatch, Team

Int64 = npt.NDArray[np.int64]


def _padded_bytes(num_bytes: int) -> int:
    return -(-num_bytes // 64) * 64


class ReferenceTarget:
    """Plain layout: the values of each weight, or its codes, scales and offsets, row-major, as padded bytes."""

    name = "reference"
    layout = "reference-v3"

    def packed_tensors(self, weight: Weight) -> list[PackedTensor]:
        rows, fmt = weight.shape[0], weight.format
        if weight.is_vector:
            return [PackedTensor(weight.name, "uint8", (_padded_bytes(rows * 4),))]
        if not fmt.is_quantized:
            return [PackedTensor(weight.name, "uint8", (_padded_bytes(rows * weight.shape[1] * 2),))]
        k = fmt.padded_k(weight.shape[1])
        groups = PackedTensor(f"{weight.name}.scales", "uint8", (_padded_bytes(rows * k // fmt.group_size * 4),))
        offsets = [dataclasses.replace(groups, name=f"{weight.name}.offsets")] if fmt.offsets else []
        return [PackedTensor(weight.name, "uint8", (_padded_bytes(rows * k),)), groups, *offsets]

    def pack(self, weight: Weight, sources: Sequence[Array | QuantizedMatrix], out: Mapping[str, Array]) -> None:
        if quantized := [s for s in sources if isinstance(s, QuantizedMatrix)]:
            k = weight.shape[1]
            codes = np.concatenate([s.codes for s in quantized])
            scales = np.concatenate([s.group_scales() for s in quantized])
            offsets = [given for s in quantized if (given := s.group_offsets()) is not None]
            padded = np.pad(codes, ((0, 0), (0, weight.format.padded_k(k) - k)))
            self._write(weight, [padded, scales, *([np.concatenate(offsets)] if offsets else [])], out)
            return
        stacked = np.concatenate([s.astype(np.float32) for s in sources if not isinstance(s, QuantizedMatrix)])
        if weight.format.is_quantized:
            self._write(weight, quantize_weight(stacked, weight.format), out)
        else:
            self._write(weight, [stacked if weight.is_vector else stacked.astype(ml_dtypes.bfloat16)], out)

    def _write(self, weight: Weight, parts: Sequence[Array], out: Mapping[str, Array]) -> None:
        for tensor, part in zip(self.packed_tensors(weight), parts, strict=True):
            raw = np.ascontiguousarray(part).view(np.uint8).reshape(-1)
            out[tensor.name][: raw.size] = raw
            out[tensor.name][raw.size :] = 0

    def kernel_choice(self, program: Program) -> str:
        return "numpy"

    def load(
        self, program: Program, plan: MemoryPlan, tensors: Mapping[str, Array], cache: CacheConfig, num_threads: int,
        team: Team | None = None,
    ) -> Executor:  # fmt: skip
        if team is not None:
            raise TargetError("the reference target computes in one process; leave tensor_parallel_size out")
        weights = {name: self._unpack(weight, tensors) for name, weight in program.weights.items()}
        for op in program.ops:
            for name in matrices_of(op):
                matrix = weights[name]
                if isinstance(matrix, Matrix) and matrix.scales is not None:
                    activations = program.buffers[op.inputs[0]].format.kind
                    weights[name] = dataclasses.replace(matrix, activations=activations)
        return ReferenceExecutor(program, weights, cache, tensors)

    def _unpack(self, weight: Weight, tensors: Mapping[str, Array]) -> Matrix | Float32:
        raw, rows, fmt = tensors[weight.name], weight.shape[0], weight.format
        if weight.is_vector:
            return raw[: rows * 4].view(np.float32)
        if not fmt.is_quantized:
            values = raw[: rows * weight.shape[1] * 2].view(ml_dtypes.bfloat16).reshape(weight.shape)
            return Matrix(fmt, values.astype(np.float32))
        k = fmt.padded_k(weight.shape[1])
        of_groups = [
            tensors[f"{weight.name}.{part}"][: rows * k // fmt.group_size * 4].view(np.float32).reshape(rows, -1)
            for part in ("scales", *(["offsets"] if fmt.offsets else []))
        ]
        scales, offsets = of_groups[0], of_groups[1] if fmt.offsets else None
        return Matrix(fmt, raw[: rows * k].view(np.int8).reshape(rows, k), scales, offsets)


def _stacked(product: AdaptedProduct) -> Lora:
    """The pairs of a product's sources as one, from bf16 values."""
    pairs = [pair for pair in product.pairs if pair is not None]
    a = np.concatenate([pair.a for pair in pairs]).astype(ml_dtypes.bfloat16).astype(np.float32)
    b = np.zeros((sum(product.heights), len(a)), np.float32)
    row = rank = 0
    for height, pair in zip(product.heights, product.pairs, strict=True):
        if pair is not None:
            rows = pair.b if product.row_order is None else pair.b[product.row_order]
            b[row : row + height, rank : rank + pair.rank] = rows.astype(ml_dtypes.bfloat16)
            rank += pair.rank
        row += height
    scales = np.repeat([pair.scale for pair in pairs], [pair.rank for pair in pairs]).astype(np.float32)
    return Lora(a if product.order is None else a[:, product.order], b, scales)


def _group_maxima(logits: Float32) -> Float32:
    """The largest of every LOGIT_GROUP neighbours, NaN where one of them isn't finite."""
    starts = np.arange(0, logits.shape[1], LOGIT_GROUP)
    finite = np.logical_and.reduceat(np.isfinite(logits), starts, axis=1)
    return np.where(finite, np.maximum.reduceat(logits, starts, axis=1), np.float32(np.nan))


class ReferenceExecutor:
    """Interprets the Program. A position lies in slot block * block_size + offset of each layer's cache."""

    def __init__(
        self, program: Program, weights: Mapping[str, Matrix | Float32], cache: CacheConfig,
        tensors: Mapping[str, Array] | None = None,
    ) -> None:  # fmt: skip
        """tensors: as packed, for the orders of inputs."""
        self.program, self.weights, self.cache, self._tensors = program, weights, cache, tensors or {}
        spec = program.spec
        self.inv_freq, self.rope_factor = inverse_frequencies(spec.rope, spec.head_dim)
        biases = [self.key_bias(op) for op in program.ops if op.kind in ("cache_write", "qkv_rope_write")]
        self.caches = make_caches(cache.num_blocks * cache.block_size, cache.dtype, spec, biases)

    def key_bias(self, write: Op) -> Float32:
        """The bias of the keys that a cache write gets; zeros for keys with a norm instead."""
        spec, producers = self.program.spec, {op.output: op for op in self.program.ops}
        if write.kind == "cache_write":
            linear = producers[producers[write.inputs[0]].inputs[0]]
            if linear.kind == "linear":
                return cast(Float32, self.weights[linear.weights[1]])
        elif len(write.weights) == 2:
            return cast(Float32, self.weights[write.weights[1]])[spec.q_size : spec.q_size + spec.kv_size]
        return np.zeros(spec.kv_size, np.float32)

    def step(
        self, batch: StepBatch, logits: Float32 | None = None, hidden: Float32 | None = None,
        maxima: Float32 | None = None,
    ) -> Float32:  # fmt: skip
        output = self.program.logits
        buffers = self.step_buffers(batch, {*filter(None, [output]), *self.program.hidden_states})
        if hidden is not None and batch.hidden_rows is not None:
            for out, name in zip(hidden, self.program.hidden_states[-len(hidden) :], strict=True):
                out[: len(batch.hidden_rows)] = buffers[name]
        result = np.empty((0, 0), np.float32) if output is None else buffers[output]
        if maxima is not None:
            maxima[: len(result)] = _group_maxima(result)
        if logits is None:
            return result
        logits[: len(result)] = result
        return logits[: len(result)]

    def step_buffers(self, batch: StepBatch, names: Collection[str] | None = None) -> dict[str, Float32]:
        """Computes one step and returns buffers by name, [rows, width]: what happens inside the model.

        names: those to keep, the others are gone after their last use; None: all of them.
        """
        state = self._state(batch)
        buffers: dict[str, Float32] = {}
        last_use = {name: op for op in self.program.ops for name in (op.output, *op.inputs)}
        for op in self.program.ops:
            inputs = [buffers[name] for name in op.inputs]
            state.adapters = self._adapters_of(op, batch)
            result = OPS[op.kind](state, op.attrs, *inputs, *(self.weights[name] for name in op.weights))
            if result is not None:
                rounds = self.program.buffers[op.output].format == BF16
                buffers[op.output] = round_to_bf16(result) if rounds else result
            if names is not None:
                for name in {op.output, *op.inputs} - set(names):
                    if last_use[name] is op:
                        buffers.pop(name, None)
        return buffers

    def _adapters_of(self, op: Op, batch: StepBatch) -> Int32 | None:
        """The adapter of each row that a product reads."""
        if batch.adapters is None or op.kind not in PRODUCTS:
            return None
        of_tokens = np.repeat(batch.adapters, np.diff(batch.query_start))
        return of_tokens[batch.logit_rows] if self.program.buffers[op.inputs[0]].rows == "logits" else of_tokens

    def set_adapter(self, number: int, adapter: LoraAdapter | None) -> None:
        products = [] if adapter is None else list(adapted_products(self.program, adapter, self._tensors))
        for weight in self.weights.values():
            if isinstance(weight, Matrix):
                weight.adapters.pop(number, None)
        for product in products:
            matrix = self.weights[product.weight.name]
            assert isinstance(matrix, Matrix)
            matrix.adapters[number] = _stacked(product)

    def embed(self, token_ids: Int32) -> Float32:
        table = self.weights[next(op for op in self.program.ops if op.kind == "embed").weights[0]]
        assert isinstance(table, Matrix)
        return table.rows(token_ids, self.program.spec.hidden_size)

    def _state(self, batch: StepBatch) -> StepState:
        size, groups, spec = self.cache.block_size, cache_groups(self.program.spec), self.program.spec
        tables = batch.block_tables.reshape(len(batch.seq_lens), len(groups), -1).astype(np.int64)
        lengths, rows = batch.seq_lens.tolist(), [slice(*pair) for pair in pairwise(batch.query_start.tolist())]
        at_tokens = np.concatenate([np.arange(n - (r.stop - r.start), n) for n, r in zip(lengths, rows, strict=True)])
        slots: list[Int64] = [np.empty(0, np.int64)] * spec.num_layers
        context: list[list[tuple[slice, Int64]]] = [[]] * spec.num_layers
        for g, group in enumerate(groups):
            of_seqs = [tables[s, g][np.arange(n) // size] * size + np.arange(n) % size for s, n in enumerate(lengths)]
            new = np.concatenate([all_[r.start - r.stop :] for all_, r in zip(of_seqs, rows, strict=True)])
            for layer in group.layers:
                slots[layer], context[layer] = new, list(zip(rows, of_seqs, strict=True))
        table = cos_sin(self.inv_freq, self.rope_factor, 0, int(at_tokens.max()) + 1)[at_tokens]
        nothing = np.empty((0, spec.hidden_size), np.float32)
        wanted = np.empty(0, np.int32) if batch.hidden_rows is None else batch.hidden_rows
        return StepState(
            spec, batch.token_ids, nothing if batch.embeddings is None else batch.embeddings, at_tokens, slots, context,
            {"logits": batch.logit_rows, "hidden": wanted}, table, self.caches, self.cache.rounds_queries,
        )  # fmt: skip

    def copy_blocks(self, source: Sequence[int], destination: Sequence[int]) -> None:
        for old, new in zip(source, destination, strict=True):
            self.write_block(new, self.read_block(old))

    def read_block(self, block: int) -> Bytes:
        return np.concatenate([np.frombuffer(part.tobytes(), np.uint8) for part in self._parts(block)])

    def write_block(self, block: int, data: Bytes) -> None:
        at = 0
        for part in self._parts(block):
            part[:] = np.frombuffer(data[at : at + part.nbytes].tobytes(), part.dtype).reshape(part.shape)
            at += part.nbytes

    def _parts(self, block: int) -> list[Array]:
        """Views of what the caches keep of a block."""
        size = self.cache.block_size
        return [array[block * size : (block + 1) * size] for cache in self.caches for array in cache.arrays()]

    def kernels(self) -> dict[str, str]:
        return {op.name: f"numpy.{op.kind}" for op in self.program.ops}

    def close(self) -> None:
        self.caches = []
