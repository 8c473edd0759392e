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
        return self.num_groups * self.group_bytes + self.num_groups // self.groups_per_block * self.block_bytes

    def group_start(self, group: int) -> int:
        """Of a group's header."""
        before = (group // self.groups_per_block + 1) * self.block_bytes if self.is_nested else 0
        return group * self.group_bytes + before


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
    panels = packed[: len(packed) // layout.panel_bytes * layout.panel_bytes].reshape(-1, layout.panel_bytes)
    rows = rows_of_panels(weight)

    def read(start: int, dtype: Any) -> Float32:
        """64 numbers of each panel, by row."""
        raw = np.ascontiguousarray(panels[:, start : start + COLUMNS * np.dtype(dtype).itemsize])
        numbers: Float32 = raw.view(dtype).astype(np.float32).reshape(-1)[rows]
        return numbers

    scales = np.empty((layout.num_groups, weight.shape[0]), np.float32)
    offsets = np.empty_like(scales) if fmt.offsets else None
    dtype = _SCALE_DTYPES[fmt.scales]
    for group in range(layout.num_groups):
        start = layout.group_start(group)
        block = layout.group_start(group // layout.groups_per_block * layout.groups_per_block) - layout.block_bytes
        scales[group] = read(start, dtype) * (read(block, np.float16) if layout.is_nested else np.float32(1))
        if offsets is None:
            continue
        if fmt.offsets == "zero":
            bias = np.float32(128 if fmt.kind == "int8" else 0)
            offsets[group] = -(read(start + layout.scale_bytes, np.uint8) - bias) * scales[group]
        else:
            factor = read(block + COLUMNS * 2, np.float16) if layout.is_nested else np.float32(1)
            offsets[group] = -read(start + layout.scale_bytes, dtype) * factor
    return scales, offsets
