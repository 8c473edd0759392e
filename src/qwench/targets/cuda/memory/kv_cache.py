"""The paged KV cache in device memory: where each layer's keys and values lie in a block.

A block is contiguous, for the layers of one cache group in turn: their keys, then their values, each
[num_kv_heads, block_size, head_dim padded to 16], int8 codes followed by fp32 scales [num_kv_heads, block_size]. So a
block has as many bytes as `CacheConfig.block_bytes` says, and copying one is one copy. Called by the executor.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qwench.checkpoint.spec import ModelSpec
from qwench.program.cache_groups import cache_groups
from qwench.program.ops import Program
from qwench.targets.cuda.devices.device import NUMPY_DTYPES, Device, DeviceArray
from qwench.targets.cuda.memory.weights import padded
from qwench.targets.target import Bytes, CacheConfig


class KvCache:
    """dtype: of keys and values as stored; int16 is bf16 here, the 16 bits that tensor cores multiply."""

    def __init__(self, device: Device, program: Program, config: CacheConfig) -> None:
        self._device, self.config, self._spec = device, config, program.spec
        self.dtype = {"fp32": "fp32", "bf16": "bf16", "int16": "bf16", "int8": "i8"}[config.dtype]
        self.block_bytes = config.block_bytes(program)
        self.memory = device.zeros("u8", config.num_blocks, self.block_bytes)
        self.row = padded(program.spec.head_dim, 16)
        self._place = _places(program.spec)

    @property
    def is_int8(self) -> bool:
        return self.config.dtype == "int8"

    def arguments(self, layer: int) -> dict[str, Any]:
        """What kernels need to find a layer's keys and values, but for the arrays: places in values, or in scales."""
        itemsize = np.dtype(NUMPY_DTYPES[self.dtype]).itemsize
        vectors = self._spec.num_kv_heads * self.config.block_size
        codes = vectors * self.row * itemsize
        part = codes + (4 * vectors if self.is_int8 else 0)  # bytes of a layer's keys, or values
        keys = self._place[layer] * 2 * part
        return {
            "key_place": keys // itemsize,
            "value_place": (keys + part) // itemsize,
            "key_scale_place": (keys + codes) // 4,
            "value_scale_place": (keys + part + codes) // 4,
            "block_stride": self.block_bytes // itemsize,
            "scale_stride": self.block_bytes // 4,
        }

    @property
    def values(self) -> DeviceArray:
        return self.memory.as_dtype(self.dtype)

    @property
    def scales(self) -> DeviceArray:
        """All bytes as fp32; arguments say where the scales are."""
        return self.memory.as_dtype("fp32")

    def block(self, number: int) -> DeviceArray:
        return self.memory.part(number * self.block_bytes, self.block_bytes)

    def read_block(self, number: int) -> Bytes:
        """Head by head, as ranks share a block out: each with its keys, or values, and their scales behind them."""
        data = np.empty(self.block_bytes, np.uint8)
        self._device.download(self.block(number), data)
        whole = np.zeros(self.block_bytes, np.uint8)
        for by_head, in_block in zip(self._by_head(whole), self._in_block(data), strict=True):
            by_head[:] = in_block
        return whole

    def write_block(self, number: int, data: Bytes) -> None:
        """The inverse."""
        block = np.zeros(self.block_bytes, np.uint8)
        for in_block, by_head in zip(self._in_block(block), self._by_head(data), strict=True):
            in_block[:] = by_head
        self._device.upload(block, self.block(number))

    def _by_head(self, data: Bytes) -> tuple[Bytes, Bytes]:
        """Views of all values and of all scales, [keys and values of each layer, heads, bytes], where heads follow each
        other."""
        values, scales = self._head_bytes
        heads = data.reshape(2 * self._num_layers, self._spec.num_kv_heads, -1)
        return heads[:, :, :values], heads[:, :, values : values + scales]

    def _in_block(self, data: Bytes) -> tuple[Bytes, Bytes]:
        """The same where they lie as kernels read them."""
        (values, scales), heads, count = self._head_bytes, self._spec.num_kv_heads, 2 * self._num_layers
        parts = data[: count * heads * (values + scales)].reshape(count, -1)
        return (
            parts[:, : heads * values].reshape(count, heads, values),
            parts[:, heads * values :].reshape(count, heads, scales),
        )

    @property
    def _num_layers(self) -> int:
        """Those that share a block."""
        return len(cache_groups(self._spec)[0].layers)

    @property
    def _head_bytes(self) -> tuple[int, int]:
        """Of a head's keys, or values, in a block; and of their scales."""
        size = self.config.block_size
        return size * self.row * int(np.dtype(NUMPY_DTYPES[self.dtype]).itemsize), 4 * size if self.is_int8 else 0


def _places(spec: ModelSpec) -> dict[int, int]:
    """Layer -> its place among those of its cache group."""
    return {layer: i for group in cache_groups(spec) for i, layer in enumerate(group.layers)}
