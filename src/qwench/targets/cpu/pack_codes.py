"""Packing codes and scales that were chosen elsewhere, by calibration: the layout of native/kernels/kernel_table.h in
NumPy. Knows nothing of how to choose them; what the native packer chooses goes through native/pack.cpp."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qwench.formats import Float32, Format, Int8

PANEL = 64  # columns
Bytes = npt.NDArray[np.uint8]


def pack_codes(codes: Int8, scales: Float32, fmt: Format, paired: bool) -> Bytes:
    """codes: [N, padded K] int8; scales: [N, groups] fp32 that bf16 holds. Returns the bytes of all panels in order."""
    columns, steps = _panels(codes, paired), _panels((scales.view(np.uint32) >> 16).astype(np.uint16), paired)
    num_panels, num_groups, size = len(columns) // PANEL, scales.shape[1], fmt.group_size
    unsigned: Bytes = (columns.astype(np.int16) + (8 if fmt.kind == "int4" else 128)).astype(np.uint8)
    packed: Bytes
    if fmt.kind == "int4":
        nibbles = unsigned.reshape(num_panels, PANEL, num_groups, size // 8, 2, 4)
        packed = nibbles[..., 0, :] | nibbles[..., 1, :] << np.uint8(4)
    else:
        packed = unsigned.reshape(num_panels, PANEL, num_groups, size // 4, 4)
    weights = packed.transpose(0, 2, 3, 1, 4).reshape(num_panels, num_groups, -1)
    steps = np.ascontiguousarray(steps.reshape(num_panels, PANEL, num_groups).transpose(0, 2, 1))
    return np.concatenate([steps.view(np.uint8), weights], axis=2).reshape(-1)


def _panels(matrix: npt.NDArray[np.generic], paired: bool) -> npt.NDArray[np.generic]:
    """Rows in the order of packed columns, padded with zeros to whole panels; of pairs 32 of each in a panel."""
    halves = np.split(matrix, 2) if paired else [matrix]
    width = PANEL // len(halves)
    padded = [np.pad(half, ((0, -len(half) % width), (0, 0))).reshape(-1, width, half.shape[1]) for half in halves]
    return np.concatenate(padded, axis=1).reshape(-1, matrix.shape[1])
