"""FP8 weights in transformers' own layouts: weight [N, K] F8_E4M3, with weight_scale_inv for each block (fine-grained
FP8), or weight_scale for each row (FBGEMM). value = weight * scale: transformers, integrations/finegrained_fp8.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from qwench.checkpoint.checkpoint import StoredTensor
from qwench.checkpoint.fields import Fields
from qwench.checkpoint.quantization.method import SCALE_ENCODINGS, Array, Read, check_scales, require
from qwench.errors import CheckpointError
from qwench.formats import BF16, Float32
from qwench.safetensors_file import TensorEntry

FP8_DTYPES = ("F8_E4M3",)


class Fp8:
    """A `Method`."""

    def __init__(self, config: Fields, entries: Mapping[str, TensorEntry], read: Read) -> None:
        self._entries, self._read = entries, read
        self._block = read_block(config, "weight_block_size")

    def parts(self, module: str) -> list[str]:
        scale = self._scale(module)
        return [] if scale is None else [f"{module}.weight", scale]

    def _scale(self, module: str) -> str | None:
        names = (f"{module}.weight_scale_inv", f"{module}.weight_scale")
        return next((name for name in names if name in self._entries), None)

    def check(self, module: str, shape: tuple[int, int]) -> None:
        n, k = shape
        scale = self._scale(module)
        assert scale is not None
        require(self._entries, f"{module}.weight", FP8_DTYPES, shape)
        blocks = -(-n // self._block[0]), -(-k // self._block[1])
        require(self._entries, scale, tuple(SCALE_ENCODINGS), blocks, (n, 1), (n,), (1,), ())

    def stored(self, module: str, shape: tuple[int, int]) -> StoredTensor:
        return StoredTensor("FP8", BF16, is_exact=False)

    def read(self, module: str, shape: tuple[int, int]) -> Float32:
        scale = self._scale(module)
        assert scale is not None
        scales = self._read(scale)
        check_scales(scales, scale)
        return scaled_fp8(self._read(f"{module}.weight"), scales, self._block, f"{module}.weight")


def read_block(config: Fields, key: str) -> tuple[int, int]:
    """Rows and columns of the blocks that share a scale, by default 128 each. Raises the error of `config`."""
    block = config.get(key) or [128, 128]
    if not isinstance(block, list) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise config.error(f"{key} is {block!r}; it must be two positive integers")
    return block[0], block[1]


def scaled_fp8(codes: Array, scales: Array, block: tuple[int, ...], name: str) -> Float32:
    """codes: [N, K] uint8 of e4m3; scales: for all, for each row, or for each block. Raises CheckpointError for NaN."""
    values: Float32 = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    if np.isnan(values).any():
        raise CheckpointError(f"tensor {name!r} holds NaN")
    n, k = values.shape
    wide = scales.astype(np.float32)
    if wide.size in (1, n):
        wide = wide.reshape(-1, 1)
    else:
        wide = np.repeat(np.repeat(wide, block[0], axis=0), block[1], axis=1)[:n, :k]
    values *= wide
    return values
