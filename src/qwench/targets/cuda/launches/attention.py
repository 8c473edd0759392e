"""Launches of attention: whether the partitions of a sequence have programs of their own. Called by the lowering."""

from __future__ import annotations

from typing import Any

from qwench.checkpoint.spec import ModelSpec
from qwench.program.ops import Op
from qwench.targets.cuda.devices.device import Device, DeviceArray
from qwench.targets.cuda.memory.activations import Activation
from qwench.targets.cuda.memory.kv_cache import KvCache
from qwench.targets.cuda.memory.weights import TARGET_PROGRAMS, padded
from qwench.targets.cuda.step_arrays import StepArrays

FEWEST_ROWS = 64  # queries that a program takes: what the widest instruction wants
PARTIAL_BYTES = 64 << 20  # that partitions computed apart may leave


def power_of_two(count: int, least: int = 16) -> int:
    """The next one from `count` on; tensor cores take no fewer than 16."""
    return max(1 << (count - 1).bit_length(), least)


class Attention:
    """Owns what is left of partitions before they are merged: sums, largest scores and totals."""

    def __init__(self, device: Device, spec: ModelSpec, cache: KvCache, max_tokens: int) -> None:
        self._device, self._spec, self._cache = device, spec, cache
        self.rep = spec.num_heads // spec.num_kv_heads
        self.block_q = power_of_two(self.rep, FEWEST_ROWS)
        self.tokens_per_tile = self.block_q // self.rep
        self._capacity = max(max_tokens, PARTIAL_BYTES // (4 * spec.q_size))  # partitions of a token
        self._sums = device.zeros("fp32", self._capacity * spec.q_size)
        self._largest = device.zeros("fp32", self._capacity * spec.num_heads)
        self._totals = device.zeros("fp32", self._capacity * spec.num_heads)

    @property
    def kernel_name(self) -> str:
        return f"attend.{ {0: 'fp32', 1: 'bf16', 3: 'bf16x3'}[self._parts] }_x_{self._cache.config.dtype}"

    @property
    def _parts(self) -> int:
        """bf16 numbers that a query is split into; 0 beside an fp32 cache."""
        config = self._cache.config
        return 0 if config.dtype == "fp32" else 1 if config.rounds_queries else 3

    def launch(
        self, op: Op, s: StepArrays, table: DeviceArray, rope: DeviceArray, q: Activation, bias: DeviceArray | None,
        out: Activation, order: DeviceArray | None,
    ) -> None:  # fmt: skip
        """bias: of the layer's keys, where the cache keeps them without it."""
        from qwench.targets.cuda.kernels.attention import attend, finish_attention

        spec, cache, shape = self._spec, self._cache, s.shape
        causal = op.attrs.get("causal", True)
        window = (op.attrs["window"] or 0) if causal else 0
        slots = -(-shape.longest // cache.config.partition_len)
        is_split = (
            slots > 1 and shape.num_tiles * spec.num_kv_heads < TARGET_PROGRAMS
            and shape.num_tokens * slots <= self._capacity
        )  # fmt: skip
        slots = slots if is_split else 1
        shared: dict[str, Any] = {
            "HEADS": spec.num_heads, "HEAD_DIM": spec.head_dim, "PARTITION": cache.config.partition_len,
            "WINDOW": window, "CAUSAL": causal, "SPLIT": is_split, "num_slots": slots,
        }  # fmt: skip
        self._device.launch(
            attend, (shape.num_tiles, spec.num_kv_heads, slots), q=q.values, keys=cache.values, values=cache.values,
            key_scales=cache.scales, value_scales=cache.scales, rope_table=rope, key_bias=bias or rope,
            tile_seq=s.tile_seq, tile_row=s.tile_row, tile_len=s.tile_len, query_start=s.query_start,
            seq_lens=s.seq_lens, tables=table, out=self._sums, out_max=self._largest, out_total=self._totals,
            scale=float(op.attrs["scale"]), table_width=shape.tables_width, KV_HEADS=spec.num_kv_heads,
            D_PAD=power_of_two(spec.head_dim), ROW=cache.row, BLOCK_SIZE=cache.config.block_size,
            PARTS=self._parts, IS_INT8=cache.is_int8, HAS_BIAS=bias is not None,
            HALF=power_of_two(spec.head_dim // 2), BLOCK_Q=self.block_q, **cache.arguments(op.attrs["layer"]), **shared,
        )  # fmt: skip
        block = min(1024, power_of_two(out.layout.k_padded, out.layout.group_size))
        self._device.launch(
            finish_attention, (shape.num_tokens, -(-out.layout.k_padded // block), 1), partial=self._sums,
            partial_max=self._largest, partial_total=self._totals, positions=s.positions, lengths=s.lengths,
            order=order or s.positions, HAS_ORDER=order is not None, BLOCK=block, **out.as_output(), **shared,
        )  # fmt: skip


def padded_tokens(max_step_tokens: int) -> int:
    """Rows of buffers: whole tiles of products."""
    return padded(max_step_tokens, 128)
