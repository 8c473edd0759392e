"""Packing: matrices of a checkpoint, floats or quantised already, into the panels of native/kernels/kernel_table.h."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from qwench.formats import Format
from qwench.host import num_cpus
from qwench.program.ops import Weight
from qwench.quantized_matrix import QuantizedMatrix
from qwench.targets.cpu import _native
from qwench.targets.target import Array

FormatTuple: TypeAlias = tuple[str, int, str, str]
_DTYPE_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def format_tuple(fmt: Format) -> FormatTuple:
    """Kind, group size, scales and offsets, as the native code takes them."""
    return fmt.kind, fmt.group_size, fmt.scales, fmt.offsets


def packed_bytes(weight: Weight) -> int:
    """The size of a packed matrix."""
    rows, k = weight.shape
    parts = [rows // 2, rows // 2] if weight.paired else [rows]
    return int(_native.packed_bytes(format_tuple(weight.format), parts, k, weight.paired))


def pack_floats(weight: Weight, sources: Sequence[Array], out: Array, variant: str) -> None:
    """Rounds sources [rows, K], bf16, fp16 or fp32, to the weight's format. The variants give the same bytes."""
    if len({s.dtype for s in sources}) > 1:
        sources = [s.astype(np.float32) for s in sources]
    _native.pack(
        sources=[np.ascontiguousarray(s).view(np.uint8).reshape(-1) for s in sources],
        dtype=_DTYPE_NAMES[sources[0].dtype.name],
        rows=[len(s) for s in sources],
        k=weight.shape[1],
        format=format_tuple(weight.format),
        paired=weight.paired,
        out=out,
        variant=variant,
        num_threads=num_cpus(),
    )


def pack_codes(weight: Weight, sources: Sequence[QuantizedMatrix], out: Array) -> None:
    """Packs sources of the weight's format, code by code. Raises ValueError for what the format can't hold."""
    assert all(s.format == weight.format for s in sources), weight.name
    parts = [(s.codes, s.scales, s.zero_points, s.minima, s.block_scales, s.block_minima) for s in sources]
    _native.pack_codes(parts, format_tuple(weight.format), weight.paired, out, num_cpus())
