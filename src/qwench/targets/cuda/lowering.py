"""A Program -> what is launched for each op, in order.

Every op kind has a method of its name here; a kind without one is an error, never a fallback. Made once, when a model
is loaded; the executor calls the launches for each step. Where a kernel would do nothing but prepare the next op's
input, both are one: a residual sum makes the norm after it, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qwench.errors import TargetError
from qwench.program.cache_groups import cache_groups
from qwench.program.ops import Op, Program
from qwench.targets.cuda.adapters.lora import Adapters
from qwench.targets.cuda.devices.device import Communicator, Device, DeviceArray
from qwench.targets.cuda.launches.attention import Attention, padded_tokens, power_of_two
from qwench.targets.cuda.launches.experts import Experts
from qwench.targets.cuda.launches.products import Partial, Products
from qwench.targets.cuda.memory.activations import Activation, Buffers, Layout, multiplied_by
from qwench.targets.cuda.memory.kv_cache import KvCache
from qwench.targets.cuda.memory.weights import DeviceMatrix, DeviceWeights
from qwench.targets.cuda.ranks.gathers import Gathers
from qwench.targets.cuda.step_arrays import StepArrays

Launch = Callable[["Step"], None]
BLOCK = 1024  # columns of a program that works on a part of a row
MOST_HEADS = 32  # that a program rotates


@dataclass(frozen=True)
class Step:
    """What launches find of a step. embeddings: rows that tokens below 0 stand for, [n, hidden_size] fp32. rope_table:
    [positions, head_dim] fp32. logits: [num_logits, num_outputs] fp32. hidden: [num_states, num_hidden, hidden_size]
    fp32, the last states of those that there are."""

    arrays: StepArrays
    embeddings: DeviceArray
    rope_table: DeviceArray
    logits: DeviceArray
    hidden: DeviceArray

    @property
    def num_states(self) -> int:
        return self.hidden.shape[0]


class Lowering:
    """launches: by op name, in order. kernels: what serves each op. communicator: with the other ranks, if the Program
    is one's (program/local.py)."""

    def __init__(
        self, device: Device, program: Program, weights: DeviceWeights, cache: KvCache, max_tokens: int,
        communicator: Communicator | None = None,
    ) -> None:  # fmt: skip
        for op in program.ops:
            if not hasattr(self, f"_{op.kind}"):
                raise TargetError(f"the cuda target has no kernel for op {op.name} of kind {op.kind}; say --target cpu")
        self._device, self._program, self._cache = device, program, cache
        self._vectors, self.matrices = weights.vectors, weights.matrices
        rows = padded_tokens(max_tokens)
        used = {op.weights[0] for op in program.ops if multiplied_by(op)}
        self._products = Products(device, [self.matrices[name] for name in used], rows)
        self.adapters = Adapters(device, program, weights, self._products, rows)
        if program.spec.experts is not None:
            self._experts = Experts(device, program.spec.experts, self._products, rows)
        self._attend = Attention(device, program.spec, cache, rows)
        self._groups = {layer: g for g, group in enumerate(cache_groups(program.spec)) for layer in group.layers}
        self._buffers = Buffers(device, program, rows)
        self.gathers = None if communicator is None else Gathers(device, program, communicator, rows)
        self._key_bias: dict[int, DeviceArray] = {}
        self._fused: set[str] = set()  # norms that a residual sum makes
        self.launches: list[Launch] = []
        self.kernels: dict[str, str] = {}
        for op in program.ops:
            self.kernels[op.name] = f"cuda.{getattr(self, f'_{op.kind}')(op)}"
            self._buffers.release(op.name)

    @property
    def tokens_per_tile(self) -> int:
        """Of attention's queries."""
        return self._attend.tokens_per_tile

    @property
    def num_groups(self) -> int:
        """Of the cache."""
        return len(set(self._groups.values()))

    def _launch_product(self, s: Step, op: Op, x: Activation, matrix: DeviceMatrix, num_rows: int) -> Partial:
        """What rows of x give with the op's matrix and their adapters."""
        return self.adapters.add(op, s.arrays, x, self._products.launch(x, matrix, num_rows))

    # ---- one method a kind: it appends launches and names the kernel

    def _embed(self, op: Op) -> str:
        matrix, out = self.matrices[op.weights[0]], self._buffers.new(op.output)
        self.launches.append(
            lambda s: self.embed(matrix, s.arrays.token_ids, s.arrays.shape.num_tokens, s.embeddings, out.values)
        )
        return f"embed.{matrix.format.kind}"

    def embed(
        self, matrix: DeviceMatrix, token_ids: DeviceArray, count: int, embeddings: DeviceArray, out: DeviceArray
    ) -> None:
        """Rows of the embedding matrix, or of `embeddings`, [count, hidden_size] fp32."""
        from qwench.targets.cuda.kernels.rows import embed

        scales = matrix.scales or matrix.values
        self._device.launch(
            embed, (count, -(-matrix.k // BLOCK), 1), token_ids=token_ids, embeddings=embeddings, table=matrix.values,
            scales=scales, offsets=matrix.offsets or scales, out=out, n_pad=matrix.rows_padded, WIDTH=matrix.k,
            K_PAD=matrix.k_padded, BLOCK=BLOCK, KIND=matrix.format.kind, GROUP=matrix.format.group_size or 1,
            DISTANCE=matrix.distance, BIAS=matrix.code_bias, HAS_OFFSETS=matrix.offsets is not None,
        )  # fmt: skip

    def _rms_norm(self, op: Op) -> str:
        if op.name in self._fused:
            return "add_norm"
        x = self._buffers[op.inputs[0]]
        if op.output in self._program.hidden_states:
            return self._norm_of_result(op, x)
        out, rows = self._buffers.new(op.output), self._program.buffers[op.output].rows
        self.launches.append(lambda s: self._launch_norm(op, x, _num_rows(s, rows), out))
        return f"rms_norm.{_name(out.layout)}"

    def _norm_of_result(self, op: Op, x: Activation) -> str:
        """The last hidden state, of the rows asked for."""
        width = x.layout.width

        def launch(s: Step) -> None:
            if s.num_states:
                size = s.arrays.shape.num_hidden
                last = s.hidden.part((s.num_states - 1) * size * width, size, width)
                self._launch_norm(op, x, size, Activation(x.layout, size, last, last, last))

        self.launches.append(launch)
        return "rms_norm.plain"

    def _launch_norm(self, op: Op | None, x: Activation, num_rows: int, out: Activation, **partial: Any) -> None:
        """x += the partial sums of a product, if given, and times weights, if given; then the norm, if `op` is one."""
        from qwench.targets.cuda.kernels.rows import rms_norm

        if not num_rows:
            return
        gain = x.values if op is None else self._vectors[op.weights[0]]
        order = self._vectors[op.weights[1]] if op is not None and len(op.weights) > 1 else None
        none = {"partial": x.values, "partial_rows": 0, "PARTIAL_WIDTH": 1, "SPLITS": 0}
        unweighted = {"weights": x.values, "WEIGHTED": 0, "WEIGHTS_WIDTH": 1}
        self._device.launch(
            rms_norm, (num_rows, 1, 1), x=x.values, gain=gain, order=order or gain, num_warps=8,
            eps=0.0 if op is None else float(op.attrs["eps"]), WIDTH=x.layout.width, HAS_NORM=op is not None,
            BLOCK=power_of_two(out.layout.k_padded, max(out.layout.group_size, 16)), HAS_ORDER=order is not None,
            **out.as_output(), **{**none, **unweighted, **partial},
        )  # fmt: skip

    def _take_rows(self, op: Op) -> str:
        x, rows = self._buffers[op.inputs[0]], op.attrs["rows"]
        if op.output in self._program.hidden_states:
            after = len(self._program.hidden_states) - self._program.hidden_states.index(op.output)
            self.launches.append(lambda s: self._take_state(s, x, after))
            return "take_rows"
        out = self._buffers.new(op.output)
        self.launches.append(lambda s: self._launch_take(x, _rows(s, rows), _num_rows(s, rows), out.values))
        return "take_rows"

    def _take_state(self, s: Step, x: Activation, after: int) -> None:
        """A hidden state with which there are `after` until the last, if so many are asked for."""
        if after <= s.num_states:
            size, width = s.arrays.shape.num_hidden, x.layout.width
            state = s.hidden.part((s.num_states - after) * size * width, size, width)
            self._launch_take(x, s.arrays.hidden_rows, size, state)

    def _launch_take(self, x: Activation, rows: DeviceArray, num_rows: int, out: DeviceArray) -> None:
        from qwench.targets.cuda.kernels.rows import take_rows

        if num_rows:
            width = x.layout.width
            self._device.launch(
                take_rows, (num_rows, -(-width // BLOCK), 1), x=x.values, rows=rows, out=out, WIDTH=width, BLOCK=BLOCK
            )

    def _linear(self, op: Op) -> str:
        """The head, of the rows asked for, into what the step gives back; and what ranks gather, the head's too."""
        x, matrix = self._buffers[op.inputs[0]], self.matrices[op.weights[0]]
        bias = self._vectors[op.weights[1]] if len(op.weights) > 1 else None
        reader = next(iter(self._program.consumers(op.output)), None)
        if op.output == self._program.logits:
            self.launches.append(
                lambda s: self._launch_linear(s, op, x, matrix, s.arrays.shape.num_logits, s.logits, bias)
            )
        elif reader is None or reader.kind != "gather" or self.gathers is None:
            raise TargetError(f"the cuda target has no kernel for op {op.name}, a linear that nothing is fused with")
        elif reader.output == self._program.logits:
            own_part = self.gathers.own_part
            self.launches.append(
                lambda s: self._launch_linear(
                    s, op, x, matrix, s.arrays.shape.num_logits, own_part(reader, s.arrays.shape.num_logits), bias
                )
            )
        else:
            out, rows = self._buffers.new(op.output).values, self._program.buffers[op.output].rows
            self.launches.append(lambda s: self._launch_linear(s, op, x, matrix, _num_rows(s, rows), out, bias))
        return _product_name(x, matrix)

    def _launch_linear(
        self, s: Step, op: Op, x: Activation, matrix: DeviceMatrix, count: int, out: DeviceArray,
        bias: DeviceArray | None,
    ) -> None:  # fmt: skip
        """out: [at least count, at least the matrix's rows] fp32."""
        from qwench.targets.cuda.kernels.rows import add_bias

        if not count:
            return
        partial = self._launch_product(s, op, x, matrix, count)
        self._device.launch(
            add_bias, (count, -(-matrix.rows // BLOCK), 1), bias=bias or out, out=out, WIDTH=matrix.rows,
            OUT_WIDTH=out.shape[-1], BLOCK=BLOCK, HAS_BIAS=bias is not None, **partial.as_input(),
        )  # fmt: skip

    def _gather(self, op: Op) -> str:
        assert self.gathers is not None
        if op.output == self._program.logits:
            return "all_gather"  # where all are looked at: LogitGather
        source = self._buffers[op.inputs[0]].values if op.attrs["has_own"] else None
        order, rows = self._vectors[op.weights[0]] if op.weights else None, self._program.buffers[op.output].rows
        launch, out = self.gathers.launch, self._buffers.new(op.output)
        self.launches.append(lambda s: launch(op, source, _num_rows(s, rows), out, order))
        return "all_gather"

    def _linear_add(self, op: Op) -> str:
        x, matrix = self._buffers[op.inputs[0]], self.matrices[op.weights[0]]
        self._add_product(op, op.inputs[1], lambda s: self._launch_product(s, op, x, matrix, s.arrays.shape.num_tokens))
        return _product_name(x, matrix)

    def _shared_linear_add(self, op: Op) -> str:
        x, routes, matrix = *(self._buffers[name] for name in op.inputs[:2]), self.matrices[op.weights[0]]

        def product(s: Step) -> Partial:
            return self._launch_product(s, op, x, matrix, s.arrays.shape.num_tokens)

        self._add_product(op, op.inputs[2], product, **self._experts.weight_of_shared(routes))
        return _product_name(x, matrix)

    def _expert_linear_add(self, op: Op) -> str:
        x, routes, matrix = *(self._buffers[name] for name in op.inputs[:2]), self.matrices[op.weights[0]]

        def product(s: Step) -> Partial:
            return self._experts.product(x, matrix, s.arrays.shape.num_tokens, 1)

        self._add_product(op, op.inputs[2], product, **self._experts.weights_of_chosen(routes))
        return f"expert_{_product_name(x, matrix)}"

    def _add(self, op: Op) -> str:
        x = self._buffers[op.inputs[0]]
        total = Partial(x.values, x.num_rows, x.layout.width, 1)
        self._add_product(op, op.inputs[1], lambda s: total)
        return "add_norm"

    def _add_product(self, op: Op, residual: str, product: Callable[[Step], Partial], **weights: Any) -> None:
        """The residual += a product of all tokens, times weights if there are any, and the norm after it."""
        out = self._buffers.take_over(op.output, residual)
        norm = next((r for r in self._program.consumers(op.output) if r.kind == "rms_norm"), None)
        normed = out
        if norm is not None:
            self._fused.add(norm.name)
            normed = self._buffers.new(norm.output)

        def launch(s: Step) -> None:
            count = s.arrays.shape.num_tokens
            self._launch_norm(norm, out, count, normed, **product(s).as_input(), **weights)

        self.launches.append(launch)

    def _gate_up_silu(self, op: Op) -> str:
        x, matrix, out = self._buffers[op.inputs[0]], self.matrices[op.weights[0]], self._buffers.new(op.output)

        def launch(s: Step) -> None:
            count = s.arrays.shape.num_tokens
            self._launch_silu(self._launch_product(s, op, x, matrix, count), matrix.rows // 2, count, out)

        self.launches.append(launch)
        return _product_name(x, matrix)

    def _expert_gate_up_silu(self, op: Op) -> str:
        x, matrix, out = self._buffers[op.inputs[0]], self.matrices[op.weights[0]], self._buffers.new(op.output)

        def launch(s: Step) -> None:
            product = self._experts.product(x, matrix, s.arrays.shape.num_tokens, matrix.top_k)
            self._launch_silu(product, matrix.rows // 2, product.num_rows, out)

        self.launches.append(launch)
        return f"expert_{_product_name(x, matrix)}"

    def _launch_silu(self, gate_up: Partial, width: int, num_rows: int, out: Activation) -> None:
        """width: of the gates."""
        from qwench.targets.cuda.kernels.rows import silu_mul

        block = min(BLOCK, power_of_two(out.layout.k_padded))
        self._device.launch(
            silu_mul, (num_rows, -(-out.layout.k_padded // block), 1), WIDTH=width, BLOCK=block,
            **out.as_output(), **gate_up.as_input(),
        )  # fmt: skip

    def _route(self, op: Op) -> str:
        x, matrix, routes = self._buffers[op.inputs[0]], self.matrices[op.weights[0]], self._buffers.new(op.output)
        self.launches.append(lambda s: self._experts.route(x, matrix, s.arrays, routes))
        return _product_name(x, matrix)

    def _dispatch(self, op: Op) -> str:
        """No row is copied: products find those of an expert in the order that is made here."""
        routes = self._buffers[op.inputs[1]]
        self._buffers.take_over(op.output, op.inputs[0])
        self.launches.append(lambda s: self._experts.sort(routes, s.arrays.shape.num_tokens))
        return "sort_by_expert"

    def _qkv_rope_write(self, op: Op) -> str:
        x, matrix, q = self._buffers[op.inputs[0]], self.matrices[op.weights[0]], self._buffers.new(op.output)
        vectors, spec = [self._vectors[name] for name in op.weights[1:]], self._program.spec
        if len(vectors) == 1 and self._cache.is_int8:
            self._key_bias[op.attrs["layer"]] = vectors[0].part(spec.q_size, spec.kv_size)
        self.launches.append(lambda s: self._launch_qkv(s, op, x, matrix, vectors, q))
        return _product_name(x, matrix)

    def _launch_qkv(
        self, s: Step, op: Op, x: Activation, matrix: DeviceMatrix, vectors: list[DeviceArray], q: Activation
    ) -> None:
        from qwench.targets.cuda.kernels.qkv import rope_write

        spec, cache, arrays, layer = self._program.spec, self._cache, s.arrays, op.attrs["layer"]
        has_norms, heads = len(vectors) == 2, spec.num_heads + 2 * spec.num_kv_heads
        block = min(power_of_two(heads), MOST_HEADS)
        partial = self._launch_product(s, op, x, matrix, arrays.shape.num_tokens)
        self._device.launch(
            rope_write, (arrays.shape.num_tokens, -(-heads // block), 1), BLOCK=block,
            bias=vectors[0], q_gain=vectors[0], k_gain=vectors[-1], rope_table=s.rope_table,
            positions=arrays.positions, token_seq=arrays.token_seq, tables=arrays.table(self._groups[layer]),
            q_out=q.values, cache=cache.values, cache_scales=cache.scales, eps=float(op.attrs.get("eps", 0.0)),
            table_width=arrays.shape.tables_width, HEADS=spec.num_heads, KV_HEADS=spec.num_kv_heads,
            HEAD_DIM=spec.head_dim, ROW=cache.row, HALF=power_of_two(spec.head_dim // 2),
            BLOCK_SIZE=cache.config.block_size, HAS_BIAS=not has_norms, HAS_NORMS=has_norms, IS_INT8=cache.is_int8,
            **cache.arguments(layer), **partial.as_input(),
        )  # fmt: skip

    def _attention(self, op: Op) -> str:
        q, out = self._buffers[op.inputs[0]], self._buffers.new(op.output)
        order, layer = self._vectors[op.weights[0]] if op.weights else None, op.attrs["layer"]
        bias, group = self._key_bias.get(layer), self._groups[layer]
        self.launches.append(
            lambda s: self._attend.launch(op, s.arrays, s.arrays.table(group), s.rope_table, q, bias, out, order)
        )
        return self._attend.kernel_name


def _rows(s: Step, kind: str) -> DeviceArray:
    return s.arrays.logit_rows if kind == "logits" else s.arrays.hidden_rows


def _num_rows(s: Step, kind: str) -> int:
    shape = s.arrays.shape
    return {"tokens": shape.num_tokens, "logits": shape.num_logits, "hidden": shape.num_hidden}[kind]


def _name(layout: Layout) -> str:
    """As bf16, bf16x3 (fp32 in three parts), int8, int8x2 (int16 in two), plain."""
    name = {"plain": "plain", "floats": "bf16", "codes": "int8"}[layout.kind]
    return name if layout.parts == 1 else f"{name}x{layout.parts}"


def _product_name(x: Activation, matrix: DeviceMatrix) -> str:
    kernel = "group_product" if matrix.format.is_quantized else "float_product"
    return f"{kernel}.{_name(x.layout)}_x_{matrix.format.kind}"
