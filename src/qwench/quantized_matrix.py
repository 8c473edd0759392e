"""QuantizedMatrix: a matrix in integer codes, as a checkpoint that was quantised elsewhere stores it.

Readers of checkpoints make it, targets pack it code by code. Its Format says what of it there is.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qwench.formats import NESTED_BLOCK, Float32, Format, Int8


@dataclass(frozen=True)
class QuantizedMatrix:
    """value = (code - zero_point) * scale - minimum, for each row and group along K; rounded once, to fp32.

    format: int4 or int8, with the group size, the encoding of scales and the kind of offsets.
    codes: [N, K] int8. int8: any; int4: from 0 to 15 with offsets, from -8 to 7 without.
    scales: [N, groups] fp32, which the encoding holds exactly. nested: whole numbers, to be multiplied with
        block_scales.
    zero_points: [N, groups] int16, for offsets "zero": from 0 to 255 beside int4, from -128 to 127 beside int8.
    minima: [N, groups] fp32, for offsets "min", encoded like the scales; nested: to be multiplied with block_minima.
    block_scales, block_minima: [N, blocks of NESTED_BLOCK values] fp32 that fp16 holds, for nested scales.
    order: [K] int32, or None where inputs are in order: column j of the codes belongs to input order[j].
    """

    format: Format
    codes: Int8
    scales: Float32
    zero_points: npt.NDArray[np.int16] | None = None
    minima: Float32 | None = None
    block_scales: Float32 | None = None
    block_minima: Float32 | None = None
    order: npt.NDArray[np.int32] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    def group_scales(self) -> Float32:
        """[N, groups] fp32: the scale of each group, nested ones multiplied out (exact: 8 bits times 11)."""
        return self._multiplied(self.scales, self.block_scales)

    def group_offsets(self) -> Float32 | None:
        """[N, groups] fp32: what is added to code * scale, or None."""
        if self.zero_points is not None:
            return -self.zero_points.astype(np.float32) * self.scales
        return None if self.minima is None else -self._multiplied(self.minima, self.block_minima)

    def dequantize(self, num_threads: int = 1) -> Float32:
        """[N, K] fp32, inputs in order. Every value is rounded once, as a fused multiply-add rounds it: a product alone
        in fp32, one with an offset by way of fp64."""
        size, k = self.format.group_size, self.codes.shape[1]
        values = np.empty(self.codes.shape, np.float32)
        scales, offsets = self.group_scales(), self.group_offsets()
        wide: Any = np.float32 if offsets is None else np.float64

        def dequantize_rows(first: int) -> None:
            rows = slice(first, first + ROWS_AT_ONCE)
            exact: Any = self.codes[rows] * np.repeat(scales[rows].astype(wide), size, axis=1)[:, :k]
            if offsets is not None:
                exact += np.repeat(offsets[rows], size, axis=1)[:, :k]
            values[rows if self.order is None else (rows, self.order)] = exact

        with ThreadPoolExecutor(num_threads) as pool:  # NumPy lets them run side by side
            list(pool.map(dequantize_rows, range(0, len(values), ROWS_AT_ONCE)))
        return values

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> QuantizedMatrix:
        """Some of its rows."""

        def of(part: npt.NDArray[Any] | None) -> Any:
            return None if part is None else part[rows]

        return dataclasses.replace(
            self, codes=of(self.codes), scales=of(self.scales), zero_points=of(self.zero_points),
            minima=of(self.minima), block_scales=of(self.block_scales), block_minima=of(self.block_minima),
        )  # fmt: skip

    def _multiplied(self, small: Float32, blocks: Float32 | None) -> Float32:
        if blocks is None:
            return small
        return small * np.repeat(blocks, NESTED_BLOCK // self.format.group_size, axis=1)[:, : small.shape[1]]


ROWS_AT_ONCE = 64  # whose intermediate values a processor's cache holds
