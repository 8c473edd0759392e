"""AWQ's layouts, as AutoAWQ and llm-awq save them: 4 bits, with zero points. value = (code - zero point) * scale.

gemm: qweight [K, N / 8] int32, qzeros [groups, N / 8], scales [groups, N]; a word has columns 0, 2, 4, 6, 1, 3, 5, 7 of
its eight, the lowest bits first. gemv: qweight [N, K / 8] and qzeros [N, words] in order, scales [N, 8 * words].
Source: awq/modules/linear of github.com/casper-hansen/AutoAWQ.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from qwench.checkpoint.checkpoint import StoredTensor
from qwench.checkpoint.fields import Fields
from qwench.checkpoint.quantization.gptq import read_group_size
from qwench.checkpoint.quantization.method import (
    SCALE_ENCODINGS,
    Array,
    Read,
    check_scales,
    kept_matrix,
    kept_stored,
    num_groups,
    require,
    unpack_bits,
)
from qwench.errors import CheckpointError
from qwench.formats import Float32
from qwench.quantized_matrix import QuantizedMatrix
from qwench.safetensors_file import TensorEntry

BITS = 4
VERSIONS = ("gemm", "gemv")
PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # of a word's columns, in order, among its nibbles


class Awq:
    """A `Method`."""

    def __init__(self, config: Fields, entries: Mapping[str, TensorEntry], read: Read) -> None:
        self._entries, self._read = entries, read
        self._group_size = read_group_size(config)
        bits = config.get("bits", config.get("w_bit", BITS))
        if bits != BITS:
            raise config.error(f"bits is {bits!r}; of AWQ {BITS} are read")
        version = str(config.get("version", "gemm")).lower()
        if version not in VERSIONS:
            raise config.error(f"version is {version!r}; of AWQ {' and '.join(VERSIONS)} are read")
        self._is_gemm = version == "gemm"

    def parts(self, module: str) -> list[str]:
        names = [f"{module}.{part}" for part in ("qweight", "qzeros", "scales")]
        return names if names[0] in self._entries else []

    def check(self, module: str, shape: tuple[int, int]) -> None:
        n, k = shape
        groups = num_groups(k, self._group_size)
        if self._is_gemm:
            require(self._entries, f"{module}.qweight", ("I32",), (k, -(-n // 8)))
            require(self._entries, f"{module}.qzeros", ("I32",), (groups, -(-n // 8)))
            require(self._entries, f"{module}.scales", tuple(SCALE_ENCODINGS), (groups, n))
            return
        require(self._entries, f"{module}.qweight", ("I32",), (n, -(-k // 8)))
        zeros = self._entries.get(f"{module}.qzeros")
        if zeros is None or len(zeros.shape) != 2 or zeros.shape[1] * 8 < groups:
            raise CheckpointError(f"tensor '{module}.qzeros' is missing or too small for {groups} groups")
        require(self._entries, f"{module}.qzeros", ("I32",), (n, zeros.shape[1]))
        require(self._entries, f"{module}.scales", tuple(SCALE_ENCODINGS), (n, zeros.shape[1] * 8))

    @functools.lru_cache(maxsize=8)  # noqa: B019  # asked for again by `stored` and `read` of one matrix
    def _zero_points(self, module: str, shape: tuple[int, int]) -> Array:
        """[N, groups]."""
        words = self._read(f"{module}.qzeros")
        if self._is_gemm:
            return np.ascontiguousarray(_columns(words)[:, : shape[0]].T)
        return unpack_bits(words, BITS)[:, : num_groups(shape[1], self._group_size)]

    def stored(self, module: str, shape: tuple[int, int]) -> StoredTensor:
        has_zero_points = bool((self._zero_points(module, shape) != 8).any())
        scales = self._entries[f"{module}.scales"].dtype
        return kept_stored("AWQ 4-bit", True, self._group_size, scales, has_zero_points)

    def read(self, module: str, shape: tuple[int, int]) -> QuantizedMatrix | Float32:
        n, k = shape
        words, scales = self._read(f"{module}.qweight"), self._read(f"{module}.scales")
        check_scales(scales, f"{module}.scales")
        codes: Array
        if self._is_gemm:
            codes, scales = np.ascontiguousarray(_columns(words)[:, :n].T), scales.T
        else:
            codes, scales = unpack_bits(words, BITS)[:, :k], scales[:, : num_groups(k, self._group_size)]
        zero_points: Array = self._zero_points(module, shape)
        stored = self.stored(module, shape)
        if stored.is_exact and not stored.format.offsets:
            codes = codes.astype(np.int8) - np.int8(8)
        return kept_matrix(stored, codes, scales, zero_points.astype(np.int16), self._group_size)


def _columns(words: Array) -> Array:
    """[rows, n] int32 of gemm -> [rows, 8 n] uint8, the columns in order."""
    nibbles = unpack_bits(words, BITS).reshape(len(words), -1, 8)
    return nibbles[:, :, PLACES].reshape(len(words), -1)
