"""compressed-tensors' layouts, as llm-compressor saves them: integers packed or plain, and FP8.

pack-quantized: weight_packed [N, K * bits / 32] int32, codes + 2^(bits - 1) in streams along K, the lowest bits first.
int-quantized: weight [N, K] int8. float-quantized: weight [N, K] F8_E4M3. weight_scale: one, [N, 1], [N, groups] or one
for each block. weight_zero_point: as the scales, packed along N beside packed weights. value = (code - zero point) *
scale. How inputs were to be quantised (input_activations) isn't used: qwench quantises them by token and group, finer
than any of that. Source: compressors/quantized_compressors of github.com/vllm-project/compressed-tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from qwench.checkpoint.checkpoint import StoredTensor
from qwench.checkpoint.fields import Fields
from qwench.checkpoint.quantization.fp8 import FP8_DTYPES, read_block, scaled_fp8
from qwench.checkpoint.quantization.method import (
    ROUNDED,
    SCALE_ENCODINGS,
    Array,
    Read,
    check_scales,
    kept_matrix,
    kept_stored,
    num_groups,
    order_of_groups,
    require,
    unpack_bits,
    words_of,
)
from qwench.formats import BF16, Float32
from qwench.quantized_matrix import QuantizedMatrix
from qwench.safetensors_file import TensorEntry

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
STRATEGIES = ("tensor", "channel", "group", "block")


class CompressedTensors:
    """A `Method`."""

    def __init__(self, config: Fields, entries: Mapping[str, TensorEntry], read: Read) -> None:
        self._entries, self._read = entries, read
        if (layout := config.get("format")) not in FORMATS:
            raise config.error(f"format is {layout!r}; of compressed-tensors {', '.join(FORMATS)} are read")
        sparsity = config.get("sparsity_config") or {}
        if not isinstance(sparsity, dict) or sparsity.get("format") not in (None, "dense"):
            raise config.error("sparsity_config says that weights are sparse, which isn't read")
        groups = config.get("config_groups")
        schemes = [_scheme(group) for group in groups.values()] if isinstance(groups, dict) else []
        if not schemes or any(scheme != schemes[0] for scheme in schemes):
            raise config.error("config_groups must quantise all weights alike")
        fields = Fields(schemes[0], config.where)
        self._is_float = fields.get("type") == "float"
        self._bits = fields.positive("num_bits")
        strategy = fields.get("strategy")
        if strategy not in STRATEGIES:
            raise config.error(f"the strategy of weights is {strategy!r}; read are {', '.join(STRATEGIES)}")
        if self._bits not in ((8,) if self._is_float else (4, 8)):
            raise config.error(f"weights are of {self._bits} bits; read are integers of 4 and 8, and floats of 8")
        self._strategy = strategy
        self._group_size = fields.positive("group_size") if strategy == "group" else -1
        self._block = read_block(fields, "block_structure")

    def parts(self, module: str) -> list[str]:
        names = ("weight_packed", "weight", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
        if f"{module}.weight_scale" not in self._entries:
            return []
        return [f"{module}.{name}" for name in names if f"{module}.{name}" in self._entries]

    def _is_packed(self, module: str) -> bool:
        return f"{module}.weight_packed" in self._entries

    def _scale_shapes(self, shape: tuple[int, int]) -> list[tuple[int, ...]]:
        n, k = shape
        if self._strategy == "tensor":
            return [(1,), (), (1, 1)]
        if self._strategy == "channel":
            return [(n, 1), (n,)]
        if self._strategy == "block":
            return [(-(-n // self._block[0]), -(-k // self._block[1]))]
        return [(n, num_groups(k, self._group_size))]

    def check(self, module: str, shape: tuple[int, int]) -> None:
        n, k = shape
        if self._is_packed(module):
            require(self._entries, f"{module}.weight_packed", ("I32",), (n, words_of(k, self._bits)))
        else:
            require(self._entries, f"{module}.weight", FP8_DTYPES if self._is_float else ("I8",), shape)
        shapes = self._scale_shapes(shape)
        require(self._entries, f"{module}.weight_scale", tuple(SCALE_ENCODINGS), *shapes)
        if (name := f"{module}.weight_zero_point") in self._entries and not self._is_float:
            if self._is_packed(module):
                require(self._entries, name, ("I32",), (words_of(n, self._bits), shapes[0][-1] if shapes[0] else 1))
            else:
                require(self._entries, name, ("I8",), *shapes)
        if f"{module}.weight_g_idx" in self._entries:
            require(self._entries, f"{module}.weight_g_idx", ("I32", "I64"), (k,))

    @functools.lru_cache(maxsize=8)  # noqa: B019  # asked for again by `stored` and `read` of one matrix
    def _zero_points(self, module: str, n: int) -> Array | None:
        """[N, groups], signed as the codes are; None where there are none, or all are 0."""
        name = f"{module}.weight_zero_point"
        if name not in self._entries:
            return None
        points: Array
        if self._is_packed(module):
            unsigned = unpack_bits(self._read(name).T, self._bits)[:, :n].T
            points = unsigned.astype(np.int16) - (1 << self._bits - 1)
        else:
            points = self._read(name).astype(np.int16)
            if self._group_size == -1:
                points = np.broadcast_to(points.reshape(-1, 1), (n, 1))
        return points if points.any() else None

    def _inputs_in_order(self, module: str, k: int) -> Array | None:
        """The group of each input where they aren't in order (actorder), else None."""
        name = f"{module}.weight_g_idx"
        groups = self._read(name) if name in self._entries else None
        if groups is None or (groups < 0).any() or np.array_equal(groups, np.arange(k) // self._group_size):
            return None  # -1: no order was written
        return groups

    def stored(self, module: str, shape: tuple[int, int]) -> StoredTensor:
        if self._is_float:
            return StoredTensor("compressed-tensors FP8", BF16, is_exact=False)
        kind = f"compressed-tensors {self._bits}-bit"
        if self._strategy == "block":
            return StoredTensor(kind, ROUNDED, is_exact=False)
        order = None
        if (groups := self._inputs_in_order(module, shape[1])) is not None:
            kind += " actorder"
            order = order_of_groups(groups, np.arange(shape[1]) // self._group_size)
            if order is None:
                return StoredTensor(kind, ROUNDED, is_exact=False)
        scales = self._entries[f"{module}.weight_scale"].dtype
        has_zero_points = self._zero_points(module, shape[0]) is not None
        return kept_stored(kind, self._bits == 4, self._group_size, scales, has_zero_points, order)

    def read(self, module: str, shape: tuple[int, int]) -> QuantizedMatrix | Float32:
        n, k = shape
        scales = self._read(f"{module}.weight_scale")
        check_scales(scales, f"{module}.weight_scale")
        if self._is_float:
            return scaled_fp8(self._read(f"{module}.weight"), scales, self._block, f"{module}.weight")
        middle = 1 << self._bits - 1
        codes: Array
        if self._is_packed(module):
            codes = unpack_bits(self._read(f"{module}.weight_packed"), self._bits)[:, :k].astype(np.int16) - middle
        else:
            codes = self._read(f"{module}.weight")
        stored, points = self.stored(module, shape), self._zero_points(module, n)
        if self._strategy == "block":
            wide = np.repeat(np.repeat(scales.astype(np.float32), self._block[0], 0), self._block[1], 1)[:n, :k]
            values: Float32 = codes.astype(np.float32) * wide
            return values
        if (groups := self._inputs_in_order(module, k)) is not None and not stored.is_exact:
            signed = codes.astype(np.float32) - (0 if points is None else points[:, groups])
            reordered: Float32 = signed * scales.astype(np.float32)[:, groups]
            return reordered
        if stored.is_exact and stored.format.offsets and self._bits == 4:  # int4 codes beside zero points aren't signed
            assert points is not None
            codes, points = codes + middle, points + middle
        codes = codes if stored.order is None else codes[:, stored.order]
        by_row = np.broadcast_to(scales.reshape(-1, 1), (n, 1)) if self._group_size == -1 else scales
        return kept_matrix(stored, codes, by_row, points, self._group_size)


def _scheme(group: Any) -> dict[str, Any]:
    """How a group's weights are quantised, what matters of it."""
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        return {}
    names = ("num_bits", "type", "strategy", "group_size", "block_structure")
    return {name: value for name in names if (value := weights.get(name)) is not None}
