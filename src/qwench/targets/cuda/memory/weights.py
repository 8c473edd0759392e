"""Weights as the kernels read them: row by row, padded, repacked on the device from the artifact's panels.

Codes, scales and offsets mean what `formats.py` says. Called by the executor when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qwench.errors import TargetError
from qwench.formats import Format
from qwench.program.ops import EXPERT_PRODUCTS, Op, Program, Weight
from qwench.targets.cuda.devices.device import Device, DeviceArray, new_array
from qwench.targets.cuda.memory.panels import PanelLayout, group_scales
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
    num_experts: with which this is a stack of as many matrices, one behind another, of which a token has `top_k`.
    whole_rows: of the matrix that these are a rank's rows of; 0: all.
    """

    format: Format
    rows: int
    k: int
    values: DeviceArray
    scales: DeviceArray | None = None
    offsets: DeviceArray | None = None
    num_experts: int = 1
    top_k: int = 1
    whole_rows: int = 0

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
        rows = padded(self.whole_rows or self.rows, ROW_MULTIPLE)
        wanted = -(-TARGET_PROGRAMS // (rows // 64 * self.top_k))
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


@dataclass(frozen=True)
class DeviceWeights:
    """vectors: by name. matrices: by name, those of experts by the name of the first of them."""

    vectors: dict[str, DeviceArray]
    matrices: dict[str, DeviceMatrix]


def load_weights(device: Device, program: Program, tensors: Mapping[str, Array]) -> DeviceWeights:
    """tensors: as the cpu target packs them."""
    vectors = {
        name: load_vector(device, weight, tensors) for name, weight in program.weights.items() if weight.is_vector
    }
    return DeviceWeights(vectors, load_matrices(device, program, tensors))


def load_vector(device: Device, weight: Weight, tensors: Mapping[str, Array]) -> DeviceArray:
    """Orders of inputs as int32, everything else as fp32."""
    values = tensors[weight.name].view(np.float32)[: weight.shape[0]]
    return new_array(device, values, "i32" if weight.name.endswith(".order") else "fp32")


def load_matrices(device: Device, program: Program, tensors: Mapping[str, Array]) -> dict[str, DeviceMatrix]:
    """By name; those of experts by the name of the first of them. tensors: as the cpu target packs them."""
    weights, matrices = program.weights, {}
    for op in program.ops:
        if op.kind in EXPERT_PRODUCTS:
            matrices[op.weights[0]] = _load_experts(device, program, op, tensors)
            continue
        for weight in (weights[name] for name in op.weights):
            if not weight.is_vector and weight.name not in matrices:
                matrices[weight.name] = load_stack(device, [weight], tensors)
    return matrices


def _load_experts(device: Device, program: Program, op: Op, tensors: Mapping[str, Array]) -> DeviceMatrix:
    """Raises TargetError for experts that differ in their formats."""
    weights, experts = [program.weights[name] for name in op.weights], program.spec.experts
    assert experts is not None
    formats = sorted({str(weight.format) for weight in weights})
    if len(formats) > 1:
        raise TargetError(
            f"the experts of {op.name} are stored as {' and '.join(formats)}; the cuda target reads experts of one "
            "format: compile them so, or say --target cpu"
        )
    return replace(load_stack(device, weights, tensors), num_experts=len(weights), top_k=experts.top_k)


def load_stack(device: Device, weights: Sequence[Weight], tensors: Mapping[str, Array]) -> DeviceMatrix:
    """Matrices of one shape and format, one behind another."""
    fmt, (rows, k) = weights[0].format, weights[0].shape
    rows_padded, k_padded, is_int4 = padded(rows, ROW_MULTIPLE), padded_width(k, fmt), fmt.kind == "int4"
    width = k_padded // 2 if is_int4 else k_padded
    values = device.zeros("i8" if fmt.is_quantized else "bf16", len(weights) * rows_padded, width)
    for i, weight in enumerate(weights):
        _unpack(device, weight, tensors[weight.name], values.part(i * rows_padded * width, rows_padded, width))
    if not fmt.is_quantized:
        return DeviceMatrix(fmt, rows, k, values)
    padding = ((0, 0), (0, k_padded // fmt.group_size - fmt.padded_k(k) // fmt.group_size), (0, rows_padded - rows))
    of_groups = [group_scales(weight, tensors[weight.name]) for weight in weights]
    scales = np.pad(np.stack([scales for scales, _ in of_groups]), padding)
    offsets = [offsets for _, offsets in of_groups if offsets is not None]
    return DeviceMatrix(
        fmt, rows, k, values, new_array(device, scales, "bf16" if fmt.scales == "bf16" else "fp32"),
        new_array(device, np.pad(np.stack(offsets), padding), "fp32") if offsets else None,
    )  # fmt: skip


def _unpack(device: Device, weight: Weight, packed: Array, out: DeviceArray) -> None:
    """out: [rows_padded, k_padded], of int4 half as wide."""
    from qwench.targets.cuda.kernels.unpack import unpack_bf16, unpack_codes

    fmt, (rows, k) = weight.format, weight.shape
    raw = device.zeros("u8", packed.nbytes)
    device.upload(packed.view(np.uint8), raw)
    shared: dict[str, Any] = {
        "out": out, "num_rows": rows, "HALF_ROWS": max(rows // 2, 1), "PAIRED": weight.paired,
        "K_PAD": padded_width(k, fmt), "BLOCK_N": 64, "BLOCK_K": 128,
    }  # fmt: skip
    grid = -(-rows // 64), -(-out.shape[1] // 128), 1
    if not fmt.is_quantized:
        device.launch(unpack_bf16, grid, packed=raw.as_dtype("bf16"), PANEL_K=fmt.padded_k(k), **shared)
        return
    layout = PanelLayout(fmt, fmt.padded_k(k) // fmt.group_size)
    device.launch(
        unpack_codes, grid, packed=raw, IS_INT4=fmt.kind == "int4", GROUP=fmt.group_size, NUM_GROUPS=layout.num_groups,
        PANEL_BYTES=layout.panel_bytes, GROUP_BYTES=layout.group_bytes, HEADER_BYTES=layout.header_bytes,
        BLOCK_BYTES=layout.block_bytes, GROUPS_PER_BLOCK=layout.groups_per_block, DISTANCE=nibble_distance(fmt),
        **shared,
    )  # fmt: skip
