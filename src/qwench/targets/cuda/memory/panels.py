"""The artifact's layout of a matrix, panels of 64 columns, as far as loading it on a device needs it.

The layout is the cpu target's (native/kernels/kernel_table.h), so that one artifact serves both. Codes are laid out
anew by a kernel (kernels/unpack.py); the scales and offsets, a few per cent of the bytes, here in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from qwench.formats import NESTED_BLOCK, Format
from qwench.program.ops import Weight
from qwench.targets.target import Array, Float32

COLUMNS = 64
_SCALE_DTYPES: dict[str, Any] = {
    "bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32, "nested": np.int8,
}  # fmt: skip


@dataclass(frozen=True)
class PanelLayout:
    """Where the parts of a quantised matrix of `num_groups` groups along K lie in a panel. Sizes in bytes."""

    format: Format
    num_groups: int

    @property
    def is_nested(self) -> bool:
        return self.format.scales == "nested"

    @property
    def scale_bytes(self) -> int:
        return int(COLUMNS * np.dtype(_SCALE_DTYPES[self.format.scales]).itemsize)

    @property
    def header_bytes(self) -> int:
        """Of a group: scales, and offsets if there are any."""
        return self.scale_bytes + {"": 0, "min": self.scale_bytes, "zero": COLUMNS}[self.format.offsets]

    @property
    def group_bytes(self) -> int:
        return self.header_bytes + COLUMNS * self.format.group_size // (2 if self.format.kind == "int4" else 1)

    @property
    def groups_per_block(self) -> int:
        return NESTED_BLOCK // self.format.group_size if self.is_nested else 1

    @property
    def block_bytes(self) -> int:
        """The fp16 factors of nested scales, and of minima, before a block's first group."""
        return COLUMNS * 2 * (2 if self.format.offsets else 1) if self.is_nested else 0

    @property
    def panel_bytes(self) -> int:
        return self.num_groups * self.group_bytes + self.num_blocks * self.block_bytes

    @property
    def num_blocks(self) -> int:
        return self.num_groups // self.groups_per_block


def rows_of_panels(weight: Weight) -> npt.NDArray[np.int64]:
    """[rows] of the matrix: panel * 64 + column."""
    rows = np.arange(weight.shape[0])
    if not weight.paired:
        return rows
    half = weight.shape[0] // 2
    within = rows % half
    return within // 32 * COLUMNS + rows // half * 32 + within % 32


def group_scales(weight: Weight, packed: Array) -> tuple[Float32, Float32 | None]:
    """Scales [groups, rows] fp32 of a quantised matrix, and what is added to code * scale, if anything is."""
    fmt = weight.format
    layout = PanelLayout(fmt, fmt.padded_k(weight.shape[1]) // fmt.group_size)
    whole = packed[: len(packed) // layout.panel_bytes * layout.panel_bytes]
    panels = whole.reshape(-1, layout.num_blocks, layout.panel_bytes // layout.num_blocks)
    of_blocks, rest = np.split(panels, [layout.block_bytes], axis=2)
    of_groups = rest.reshape(*rest.shape[:2], layout.groups_per_block, layout.group_bytes)
    rows, dtype = rows_of_panels(weight), _SCALE_DTYPES[fmt.scales]

    def read(part: Array, start: int, dtype: Any) -> Float32:
        """64 numbers of each block, or group, of all panels: [blocks or groups, rows]."""
        raw = np.ascontiguousarray(part[..., start : start + COLUMNS * np.dtype(dtype).itemsize])
        numbers = raw.view(dtype).astype(np.float32).reshape(len(panels), -1, COLUMNS)
        by_row: Float32 = numbers.transpose(1, 0, 2).reshape(numbers.shape[1], -1)[:, rows]
        return by_row

    def factors(start: int) -> Float32 | np.float32:
        """What the numbers of each group are multiplied with."""
        if not layout.is_nested:
            return np.float32(1)
        return np.repeat(read(of_blocks, start, np.float16), layout.groups_per_block, axis=0)

    scales = read(of_groups, 0, dtype) * factors(0)
    if not fmt.offsets:
        return scales, None
    if fmt.offsets == "zero":
        bias = np.float32(128 if fmt.kind == "int8" else 0)
        return scales, -(read(of_groups, layout.scale_bytes, np.uint8) - bias) * scales
    return scales, -read(of_groups, layout.scale_bytes, dtype) * factors(2 * COLUMNS)
