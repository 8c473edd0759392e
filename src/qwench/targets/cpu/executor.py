"""Lowers a Program to the native executor, op by op, and hands it one batch per step.

Every op kind has a method of its name here; a kind without one is an error, never a fallback. Knows nothing of
requests; the native side knows nothing of Programs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qwench.checkpoint.experts import ExpertsSpec
from qwench.errors import TargetError
from qwench.lora.adapter import LoraAdapter
from qwench.program.cache_groups import cache_groups
from qwench.program.memory import MemoryPlan, work_width
from qwench.program.ops import PRODUCTS, Op, Program, residual_of
from qwench.program.rope import cos_sin, inverse_frequencies
from qwench.program.shard import PANEL, Span
from qwench.targets.adapted_products import adapted_products
from qwench.targets.cpu import _native
from qwench.targets.cpu.pack import FormatTuple, format_tuple
from qwench.targets.cpu.rank_panels import copy_panels, panels_of
from qwench.targets.target import (
    Array,
    Bytes,
    CacheConfig,
    Chain,
    ChainRule,
    Channel,
    Executor,
    Float32,
    Int32,
    StepBatch,
    Team,
)

# Offset in the arena, width, kind, group size (0: floats), which rows, and whether it is a result: then the caller's,
# and the offset of a hidden state says how many come after it.
BufferTuple = tuple[int, int, str, int, str, bool]
_NO_BUFFER: BufferTuple = (0, 0, "fp32", 0, "tokens", False)
_NO_EMBEDDINGS, _NO_ROWS = np.empty((0, 0), np.float32), np.empty(0, np.int32)
_NO_STATES = np.empty((0, 0, 0), np.float32)
_ROPE_POSITIONS = 4096


class CpuExecutor:
    """A Program on one kernel variant. Keeps the packed tensors alive; they may be read-only memory maps."""

    def __init__(
        self,
        variant: str,
        program: Program,
        plan: MemoryPlan,
        tensors: Mapping[str, Array],
        cache: CacheConfig,
        num_threads: int,
        team: Team | None = None,
    ) -> None:
        self.program, self.variant = program, variant
        self._plan, self._tensors, self._team = plan, tensors, team
        self._copies: list[Array] = []  # which native code reads
        self._kernels: dict[str, str] = {}
        spec, groups = program.spec, cache_groups(program.spec)
        places = {layer: (g, i) for g, group in enumerate(groups) for i, layer in enumerate(group.layers)}
        heads: Mapping[str, Any] = next((op.attrs for op in program.ops if "heads" in op.attrs), {})
        all_heads = (0, spec.num_heads)
        self.native = _native.Executor(
            variant=variant,
            num_threads=num_threads,
            max_tokens=plan.max_step_tokens,
            num_heads=spec.num_heads,
            vocab_size=spec.vocab_size,
            num_outputs=spec.num_outputs,
            arena_bytes=plan.arena_bytes,
            scratch_width=work_width(program),
            experts_per_token=1 if spec.experts is None else spec.experts.top_k,
            cache_places=[places[layer] for layer in range(spec.num_layers)],
            num_places=len(groups[0].layers),
            num_blocks=cache.num_blocks,
            block_size=cache.block_size,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            cache_dtype=cache.dtype,
            rounds_queries=cache.rounds_queries,
            partition_len=cache.partition_len,
            heads=heads.get("heads", all_heads),
            host_heads=heads.get("host_heads", [all_heads]),
            host=0 if team is None else team.host,
            team=None if team is None else _team_tuple(team),
            link=None if team is None or team.link is None else dataclasses.astuple(team.link),
        )
        self._attention_name = f"paged_attention.{cache.attends_in}_x_{cache.dtype}"
        self._phases_until: dict[str, int] = {}  # op -> how many native phases there were once it was lowered
        self._products: dict[str, int] = {}  # op -> its number among the native executor's products
        for op in program.ops:
            lower = getattr(self, f"_{op.kind}", None)
            if lower is None:
                raise TargetError(f"the cpu target has no kernel for op {op.name} of kind {op.kind}")
            self._kernels[op.name] = f"{variant}.{lower(op)}"
            if op.kind in PRODUCTS:
                self._products[op.name] = self.native.num_products() - 1
            self._phases_until[op.name] = len(self.native.phase_seconds())
        self._inv_freq, self._rope_factor = inverse_frequencies(spec.rope, spec.head_dim)
        self._rope_table = np.empty((0, spec.head_dim), np.float32)
        self._logits = np.empty((0, spec.num_outputs), np.float32)

    def step(
        self, batch: StepBatch, logits: Float32 | None = None, hidden: Float32 | None = None,
        maxima: Float32 | None = None,
    ) -> Float32:  # fmt: skip
        num_logits = len(batch.logit_rows)
        if logits is None:
            if len(self._logits) < num_logits:
                self._logits = np.empty((num_logits, self.program.spec.num_outputs), np.float32)
            logits = self._logits
        self.grow_rope_table(int(batch.seq_lens.max()))
        self.native.step(
            batch.token_ids,
            batch.query_start,
            batch.seq_lens,
            batch.block_tables,
            batch.logit_rows,
            _NO_EMBEDDINGS if batch.embeddings is None else batch.embeddings,
            _NO_ROWS if batch.hidden_rows is None else batch.hidden_rows,
            batch.adapters,
            logits,
            _NO_STATES if hidden is None else hidden,
            maxima,
            batch.top_groups,
        )
        return logits[:num_logits]

    def chain(
        self, token: int, length: int, block_table: Int32, rule: ChainRule, logits: Float32, maxima: Float32
    ) -> Chain:
        self.grow_rope_table(length + rule.most)
        return Chain(*self.native.chain(
            token, length, block_table, rule.margins, rule.odds, rule.product, rule.least, rule.most, rule.temperature,
            rule.least_confidence, rule.vocab_size, logits, maxima,
        ))  # fmt: skip

    def embed(self, token_ids: Int32) -> Float32:
        rows = np.empty((len(token_ids), self.program.spec.hidden_size), np.float32)
        self.native.embed(token_ids, rows)
        return rows

    def copy_blocks(self, source: Sequence[int], destination: Sequence[int]) -> None:
        for old, new in zip(source, destination, strict=True):
            self.native.copy_block(int(old), int(new))

    def read_block(self, block: int) -> Bytes:
        data = np.empty(self.native.block_bytes(), np.uint8)
        self.native.read_block(block, data)
        return data

    def write_block(self, block: int, data: Bytes) -> None:
        self.native.write_block(block, data)

    def set_adapter(self, number: int, adapter: LoraAdapter | None) -> None:
        self.native.drop_lora(number)
        if adapter is None:
            return
        from qwench.targets.cpu.lora import pack_lora  # which needs what nothing else here does

        products = list(adapted_products(self.program, adapter, self._tensors))  # all are checked before one is set
        for product in products:
            packed = pack_lora(product)
            self.native.set_lora(
                self._products[product.op.name], number, packed.a, packed.b, packed.scales, packed.first_rank,
                product.weight.shape[1], packed.depth,
            )  # fmt: skip

    @property
    def channel(self) -> Channel:
        """Of a rank. Steps go by it, too, without Python."""
        return self.native

    def share_threads(self, other: Executor) -> None:
        if isinstance(other, CpuExecutor):
            self.native.share_threads(other.native)

    def kernels(self) -> dict[str, str]:
        return dict(self._kernels)

    def op_seconds(self) -> dict[str, dict[str, float]]:
        """As `TimedExecutor`; phases of one op that have the same name count as one."""
        clock, first = self.native.phase_seconds(), 0
        result: dict[str, dict[str, float]] = {}
        for name, last in self._phases_until.items():
            spent = result[name] = {}
            for phase, seconds in clock[first:last]:
                spent[phase] = spent.get(phase, 0.0) + seconds
            first = last
        return result

    def close(self) -> None:
        if hasattr(self, "native"):
            del self.native

    @property
    def num_positions(self) -> int:
        """Those that the RoPE table has."""
        return len(self._rope_table)

    def grow_rope_table(self, positions: int) -> None:
        """A part at a time: the table for 131,072 positions takes a second that short prompts need not wait."""
        if positions <= len(self._rope_table):
            return
        size = -(-positions // _ROPE_POSITIONS) * _ROPE_POSITIONS
        new = cos_sin(self._inv_freq, self._rope_factor, len(self._rope_table), size)
        self._rope_table = np.concatenate([self._rope_table, new])
        self.native.set_rope_table(self._rope_table)

    def _buffer(self, name: str) -> BufferTuple:
        buffer, program = self.program.buffers[name], self.program
        if name in program.hidden_states:
            offset = len(program.hidden_states) - 1 - program.hidden_states.index(name)
        else:
            offset = self._plan.offsets.get(name, 0)  # the logits have none
        fmt = buffer.format
        return offset, buffer.width, fmt.kind, fmt.group_size, buffer.rows, name in program.results

    def _vector(self, name: str) -> Float32:
        return self._tensors[name].view(np.float32)

    def _matrix(self, name: str) -> tuple[FormatTuple, int, int, Array]:
        """Format, packed columns, K and the packed bytes."""
        weight = self.program.weights[name]
        rows, k = weight.shape
        if weight.paired:
            rows = -(-rows // 64) * 64  # halves of 32 gate and 32 up columns, each padded
        return format_tuple(weight.format), rows, k, self._tensors[name]

    def _product_matrix(self, op: Op, name: str | None = None) -> tuple[FormatTuple, int, int, Array]:
        """The same for a product, of its first or another matrix; of a rank's, its own panels alone are there."""
        fmt, rows, k, packed = self._matrix(name or op.weights[0])
        if self._team is not None:
            packed = copy_panels(packed, panels_of(op, self.program.spec), -(-rows // PANEL))
            self._copies.append(packed)
        return fmt, rows, k, packed

    def _experts(self, op: Op) -> list[tuple[FormatTuple, int, int, Array]]:
        return [self._product_matrix(op, name) for name in op.weights]

    def _panels(self, op: Op) -> tuple[Span, list[Span]]:
        """Those that this rank computes of a product, and those of each host."""
        everything = (0, -(-self._matrix(op.weights[0])[1] // PANEL))
        return op.attrs.get("panels", everything), op.attrs.get("host_panels", [everything])

    def _matmul_name(self, op: Op) -> str:
        weight, activation = self.program.weights[op.weights[0]].format, self.program.buffers[op.inputs[0]].format
        return f"{op.kind}.{activation.kind}_x_{weight.kind}"

    def _embed(self, op: Op) -> str:
        self.native.add_embed(*self._matrix(op.weights[0]), self._buffer(op.output))
        return f"embed.{self.program.weights[op.weights[0]].format.kind}"

    def _rms_norm(self, op: Op) -> str:
        out = self.program.buffers[op.output]
        self.native.add_norm(
            self._buffer(op.inputs[0]),
            self._vector(op.weights[0]),
            op.attrs["eps"],
            self._buffer(op.output),
            self._vector(op.weights[1]) if len(op.weights) > 1 else None,
        )
        return "rms_norm" if out.format.kind == "fp32" else f"rms_norm.{out.format.kind}"

    def _linear(self, op: Op) -> str:
        bias = self._vector(op.weights[1]) if len(op.weights) > 1 else None
        self.native.add_linear(
            self._buffer(op.inputs[0]),
            *self._product_matrix(op),
            bias,
            "store",
            _NO_BUFFER,
            self._buffer(op.output),
            *self._panels(op),
        )
        return self._matmul_name(op)

    def _linear_add(self, op: Op) -> str:
        self.native.add_linear(
            self._buffer(op.inputs[0]),
            *self._product_matrix(op),
            None,
            "add",
            self._buffer(op.inputs[1]),
            self._buffer(op.output),
            *self._panels(op),
        )
        return self._matmul_name(op)

    def _gate_up_silu(self, op: Op) -> str:
        self.native.add_linear(
            self._buffer(op.inputs[0]),
            *self._product_matrix(op),
            None,
            "silu_mul",
            _NO_BUFFER,
            self._buffer(op.output),
            *self._panels(op),
        )
        return self._matmul_name(op)

    def _qkv_rope_write(self, op: Op) -> str:
        bias, norms = (op.weights[1], None) if len(op.weights) == 2 else (None, op.weights[1:])
        self.native.add_qkv_rope_write(
            self._buffer(op.inputs[0]),
            *self._product_matrix(op),
            None if bias is None else self._vector(bias),
            None if norms is None else (self._vector(norms[0]), self._vector(norms[1]), op.attrs["eps"]),
            op.attrs["layer"],
            self._buffer(op.output),
        )
        return self._matmul_name(op)

    def _attention(self, op: Op) -> str:
        self.native.add_attention(
            self._buffer(op.inputs[0]),
            op.attrs["layer"],
            op.attrs["window"] or 0,
            op.attrs.get("causal", True),
            op.attrs["scale"],
            self._buffer(op.output),
            self._vector(op.weights[0]) if op.weights else None,
        )
        return self._attention_name

    def _relu(self, op: Op) -> str:
        self.native.add_relu(self._buffer(op.inputs[0]), self._buffer(op.output))
        return "relu"

    def _route(self, op: Op) -> str:
        experts = self._experts_spec()
        self.native.add_route(
            self._buffer(op.inputs[0]),
            *self._matrix(op.weights[0]),
            experts.num_experts,
            experts.normalizes,
            self._buffer(op.output),
        )
        return self._matmul_name(op)

    def _shared_linear_add(self, op: Op) -> str:
        self.native.add_shared_linear_add(
            self._buffer(op.inputs[0]),
            self._buffer(op.inputs[1]),
            *self._product_matrix(op),
            self._residual(op),
            self._buffer(op.output),
            *self._panels(op),
        )
        return self._matmul_name(op)

    def _dispatch(self, op: Op) -> str:
        rows, routes = map(self._buffer, op.inputs)
        self.native.add_dispatch(rows, routes, self._experts_spec().num_experts, self._buffer(op.output))
        return "dispatch"

    def _expert_gate_up_silu(self, op: Op) -> str:
        self.native.add_expert_gate_up_silu(
            self._buffer(op.inputs[0]), self._experts(op), self._buffer(op.output), *self._panels(op)
        )
        return self._matmul_name(op)

    def _expert_linear_add(self, op: Op) -> str:
        self.native.add_expert_linear_add(
            self._buffer(op.inputs[0]),
            self._experts(op),
            self._residual(op),
            self._buffer(op.output),
            *self._panels(op),
        )
        return self._matmul_name(op)

    def _experts_spec(self) -> ExpertsSpec:
        assert self.program.spec.experts is not None
        return self.program.spec.experts

    def _residual(self, op: Op) -> BufferTuple:
        residual = residual_of(op)
        return _NO_BUFFER if residual is None else self._buffer(residual)

    def _take_rows(self, op: Op) -> str:
        self.native.add_take_rows(self._buffer(op.inputs[0]), self._buffer(op.output))
        return "take_rows"


def _team_tuple(team: Team) -> tuple[int, int, int, int, list[int]]:
    """Address and size of its memory, bytes of the mailbox, rank, and threads of each."""
    return team.memory.ctypes.data, team.memory.nbytes, team.mail_bytes, team.rank, list(team.threads)
