"""GPTQ's layout, as AutoGPTQ, GPTQModel and auto-round save it.

qweight [K * bits / 32, N] int32: along K, streams of unsigned codes, the lowest bits first. scales [groups, N]. qzeros
[groups, N * bits / 32]: zero points along N, in checkpoint format "gptq" (v1) less 1, in "gptq_v2" as they are. g_idx
[K]: the group of each input, in order unless desc_act. value = (code - zero point) * scale. Source: qlinear/torch.py of
github.com/ModelCloud/GPTQModel.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from qwench.checkpoint.checkpoint import StoredTensor
from qwench.checkpoint.fields import Fields
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
from qwench.errors import CheckpointError
from qwench.formats import Float32
from qwench.quantized_matrix import QuantizedMatrix
from qwench.safetensors_file import TensorEntry

BITS = (2, 3, 4, 8)
FORMATS = ("gptq", "gptq_v2")


class Gptq:
    """A `Method`."""

    def __init__(self, config: Fields, entries: Mapping[str, TensorEntry], read: Read) -> None:
        self._entries, self._read = entries, read
        self._bits = config.positive("bits")
        self._group_size = read_group_size(config)
        if self._bits not in BITS:
            raise config.error(f"bits is {self._bits}; of GPTQ {', '.join(map(str, BITS))} are read")
        version = config.get("checkpoint_format") or "gptq"
        if version not in FORMATS:
            raise config.error(f"checkpoint_format is {version!r}; read are {', '.join(FORMATS)}")
        rules = config.get("dynamic") or {}  # those with a minus leave modules as they were
        if not isinstance(rules, dict) or not all(rule.startswith("-") for rule in rules):
            raise config.error("dynamic gives modules bits of their own, which isn't read")
        self._bias = 1 if version == "gptq" else 0  # of stored zero points

    def parts(self, module: str) -> list[str]:
        names = [f"{module}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")]
        return [name for name in names if name in self._entries] if names[0] in self._entries else []

    def check(self, module: str, shape: tuple[int, int]) -> None:
        n, k = shape
        groups, bits = num_groups(k, self._group_size), self._bits
        require(self._entries, f"{module}.qweight", ("I32",), (words_of(k, bits), n))
        require(self._entries, f"{module}.qzeros", ("I32",), (groups, words_of(n, bits)))
        require(self._entries, f"{module}.scales", tuple(SCALE_ENCODINGS), (groups, n))
        if f"{module}.g_idx" in self._entries:
            require(self._entries, f"{module}.g_idx", ("I32", "I64"), (k,))
            groups_of = self._groups_of_inputs(module, k)
            if groups_of.min() < 0 or groups_of.max() >= groups:
                raise CheckpointError(f"tensor '{module}.g_idx' names groups that there are not")

    @functools.lru_cache(maxsize=8)  # noqa: B019  # asked for again by `stored` and `read` of one matrix
    def _zero_points(self, module: str, n: int) -> Array:
        """[N, groups] int16."""
        stored = unpack_bits(self._read(f"{module}.qzeros"), self._bits)[:, :n]
        mask = (1 << self._bits) - 1
        return np.ascontiguousarray(((stored.astype(np.int16) + self._bias) & mask).T)

    def _groups_of_inputs(self, module: str, k: int) -> Array:
        if f"{module}.g_idx" in self._entries:
            return self._read(f"{module}.g_idx")
        return self._in_order(k)

    def _in_order(self, k: int) -> Array:
        return np.arange(k) // (k if self._group_size == -1 else self._group_size)

    def _is_reordered(self, module: str, k: int) -> bool:
        return not np.array_equal(self._groups_of_inputs(module, k), self._in_order(k))

    def stored(self, module: str, shape: tuple[int, int]) -> StoredTensor:
        kind = f"GPTQ {self._bits}-bit"
        order = None
        if self._is_reordered(module, shape[1]):
            kind += " desc_act"
            order = order_of_groups(self._groups_of_inputs(module, shape[1]), self._in_order(shape[1]))
            if order is None:
                return StoredTensor(kind, ROUNDED, is_exact=False)
        has_zero_points = bool((self._zero_points(module, shape[0]) != 1 << self._bits - 1).any())
        scales = self._entries[f"{module}.scales"].dtype
        return kept_stored(kind, self._bits < 8, self._group_size, scales, has_zero_points, order)

    def read(self, module: str, shape: tuple[int, int]) -> QuantizedMatrix | Float32:
        n, k = shape
        codes: Array = unpack_bits(self._read(f"{module}.qweight").T, self._bits)[:, :k]
        scales = self._read(f"{module}.scales").T
        check_scales(scales, f"{module}.scales")
        zero_points, stored = self._zero_points(module, n), self.stored(module, shape)
        if self._is_reordered(module, k) and not stored.is_exact:
            groups = self._groups_of_inputs(module, k)
            values: Float32 = (codes - zero_points[:, groups]) * scales.astype(np.float32)[:, groups]
            return values
        codes = codes if stored.order is None else codes[:, stored.order]
        middle = 1 << self._bits - 1
        if self._bits == 8 or (stored.is_exact and not stored.format.offsets):  # formats whose codes are signed
            codes, zero_points = codes.astype(np.int16) - middle, zero_points - middle
        return kept_matrix(stored, codes, scales, zero_points, self._group_size)


def read_group_size(config: Fields) -> int:
    """-1 for whole rows; AWQ's first files call it q_group_size. Raises the error of `config`."""
    key = "q_group_size" if "group_size" not in config.values else "group_size"
    if config.get(key) in (-1, None):
        return -1
    return config.positive(key)
