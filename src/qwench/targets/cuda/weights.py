"""Weights as the kernels read them: row by row, padded, repacked on the device from the artifact's panels.

Codes, scales and offsets mean what `formats.py` says. Called by the executor when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qwench.formats import Format
from qwench.program.ops import Program, Weight
from qwench.targets.cuda.device import Device, DeviceArray, new_array
from qwench.targets.cuda.panels import PanelLayout, group_scales
from qwench.targets.target import Array

ROW_MULTIPLE = 128  # of rows: the tallest tile of a product
K_MULTIPLE = 128  # values of K in the steps of a product
TARGET_PROGRAMS = 256  # what few tokens should give a GPU to do: two programs a processor, about
LEAST_SPLIT = 512  # values of K that are worth a program of their own


@dataclass(frozen=True)
class DeviceMatrix:
    """A matrix [rows, k], stored as [rows_padded, k_padded] with zeros: bf16, int8 codes, or two int4 codes a byte,
    whose k are `distance` apart. scales: [groups, rows_padded], bf16 or fp32; offsets likewise, fp32, or None.

    num_splits: the parts of `k_split` values along K that are summed by themselves, whatever the number of tokens.
    """

    format: Format
    rows: int
    k: int
    values: DeviceArray
    scales: DeviceArray | None = None
    offsets: DeviceArray | None = None

    @property
    def rows_padded(self) -> int:
        return padded(self.rows, ROW_MULTIPLE)

    @property
    def k_padded(self) -> int:
        return padded_width(self.k, self.format)

    @property
    def distance(self) -> int:
        return nibble_distance(self.format)

    @property
    def code_bias(self) -> int:
        """What int4 codes have added where they are stored."""
        return 8 if self.format.kind == "int4" and not self.format.offsets else 0

    @property
    def k_split(self) -> int:
        wanted = -(-TARGET_PROGRAMS // (self.rows_padded // 64))
        most = max(self.k_padded // LEAST_SPLIT, 1)
        return padded(-(-self.k_padded // min(wanted, most)), max(K_MULTIPLE, self.format.group_size))

    @property
    def num_splits(self) -> int:
        return -(-self.k_padded // self.k_split)


def padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def padded_width(k: int, weights: Format) -> int:
    """The width of what is multiplied with a matrix of that format, and of the matrix."""
    return padded(k, max(K_MULTIPLE, weights.group_size))


def nibble_distance(fmt: Format) -> int:
    """How far apart along K the two codes of a byte are: half a group, or a group of 32, as tensor cores take no
    less."""
    return max(fmt.group_size // 2, 32)


def load_vectors(device: Device, program: Program, tensors: Mapping[str, Array]) -> dict[str, DeviceArray]:
    """By name; orders of inputs as int32, everything else as fp32."""
    vectors = {}
    for weight in program.weights.values():
        if weight.is_vector:
            values = tensors[weight.name].view(np.float32)[: weight.shape[0]]
            vectors[weight.name] = new_array(device, values, "i32" if weight.name.endswith(".order") else "fp32")
    return vectors


def load_matrix(device: Device, weight: Weight, packed: Array) -> DeviceMatrix:
    """packed: as the cpu target packs it."""
    from qwench.targets.cuda.kernels.unpack import unpack_bf16

    rows, k = weight.shape
    raw = device.zeros("u8", packed.nbytes)
    device.upload(packed.view(np.uint8), raw)
    if weight.format.is_quantized:
        return _load_codes(device, weight, packed, raw)
    values = device.zeros("bf16", padded(rows, ROW_MULTIPLE), padded_width(k, weight.format))
    device.launch(
        unpack_bf16, _tiles(rows, values.shape[1]), packed=raw.as_dtype("bf16"), out=values, num_rows=rows,
        HALF_ROWS=max(rows // 2, 1), PAIRED=weight.paired, PANEL_K=weight.format.padded_k(k), K_PAD=values.shape[1],
        BLOCK_N=64, BLOCK_K=128,
    )  # fmt: skip
    return DeviceMatrix(weight.format, rows, k, values)


def _load_codes(device: Device, weight: Weight, packed: Array, raw: DeviceArray) -> DeviceMatrix:
    from qwench.targets.cuda.kernels.unpack import unpack_codes

    fmt, (rows, k) = weight.format, weight.shape
    layout = PanelLayout(fmt, fmt.padded_k(k) // fmt.group_size)
    k_padded, is_int4 = padded_width(k, fmt), fmt.kind == "int4"
    values = device.zeros("i8", padded(rows, ROW_MULTIPLE), k_padded // 2 if is_int4 else k_padded)
    device.launch(
        unpack_codes, _tiles(rows, values.shape[1]), packed=raw, out=values, num_rows=rows,
        HALF_ROWS=max(rows // 2, 1), PAIRED=weight.paired, IS_INT4=is_int4, GROUP=fmt.group_size,
        NUM_GROUPS=layout.num_groups, PANEL_BYTES=layout.panel_bytes, GROUP_BYTES=layout.group_bytes,
        HEADER_BYTES=layout.header_bytes, BLOCK_BYTES=layout.block_bytes, GROUPS_PER_BLOCK=layout.groups_per_block,
        DISTANCE=nibble_distance(fmt), K_PAD=k_padded, BLOCK_N=64, BLOCK_K=128,
    )  # fmt: skip
    scales, offsets = group_scales(weight, packed)
    padding = ((0, k_padded // fmt.group_size - len(scales)), (0, values.shape[0] - rows))
    return DeviceMatrix(
        fmt, rows, k, values,
        new_array(device, np.pad(scales, padding), "bf16" if fmt.scales == "bf16" else "fp32"),
        None if offsets is None else new_array(device, np.pad(offsets, padding), "fp32"),
    )  # fmt: skip


def _tiles(rows: int, width: int) -> tuple[int, int, int]:
    return -(-rows // 64), -(-width // 128), 1
