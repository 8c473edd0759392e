"""What becomes of the matrices of a checkpoint that is quantised already: kept code by code where a format holds them.

Matrices that are multiplied as one (q, k and v; gate and up) need one format. Where their checkpoint gives them
several, they get one that holds all of them. Called by compiler.py, and by `qwench plan`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qwench.artifact.artifact import Conversion, derive_program
from qwench.checkpoint.checkpoint import Checkpoint, StoredTensor, as_floats
from qwench.checkpoint.spec import ModelSpec
from qwench.formats import BF16, GROUP_SIZES, Format, dequantize_weight, quantize_weight, round_to_bf16
from qwench.program.ops import Program, Weight
from qwench.program.passes import ordered_matrix
from qwench.quantized_matrix import QuantizedMatrix

Order = npt.NDArray[np.int32]
Source = npt.NDArray[Any] | QuantizedMatrix
SAMPLED_ROWS = 64  # of a matrix, evenly spread, whose relative error is told


def derive_kept_program(spec: ModelSpec, activations: str, checkpoint: Checkpoint) -> Program:
    """As `derive_program`, with the formats and the orders of inputs that the checkpoint's matrices have."""
    return derive_program(
        spec,
        lambda weight: kept_format(weight, checkpoint),
        activations,
        lambda weight: kept_order(weight, checkpoint) is not None,
    )


def kept_format(weight: Weight, checkpoint: Checkpoint) -> Format:
    """The format that holds all sources of a weight, or comes closest."""
    stored = [checkpoint.stored(source) for source in weight.sources]
    if weight.keeps_order and any(s.order is not None for s in stored):
        return Format("int8", GROUP_SIZES[0])
    return _common(stored)


def kept_order(weight: Weight, checkpoint: Checkpoint) -> Order | None:
    """The order of a kept matrix's inputs, if its sources have one, and the same one; else None."""
    if weight.keeps_order:
        return None
    stored = [checkpoint.stored(source) for source in weight.sources]
    orders = [s.order for s in stored if s.order is not None]
    same = len(orders) == len(stored) and all(np.array_equal(order, orders[0]) for order in orders)
    return orders[0] if same and _common(stored) == stored[0].format else None


def _common(stored: Sequence[StoredTensor]) -> Format:
    formats = {s.format for s in stored}
    in_one_order = len({None if s.order is None else s.order.tobytes() for s in stored}) == 1
    if len(formats) == 1 and in_one_order:
        return formats.pop()
    if not in_one_order and BF16 not in formats:
        return Format("int8", GROUP_SIZES[0])
    if BF16 in formats:
        return BF16
    if len({f.group_size for f in formats}) > 1:
        return Format("int8", min(f.group_size for f in formats))
    scales = {f.scales for f in formats}
    return Format(
        "int8" if any(f.kind == "int8" for f in formats) else "int4",
        next(iter(formats)).group_size,
        scales.pop() if len(scales) == 1 and "nested" not in scales and not _has_zero_points(formats) else "fp32",
        "min" if any(f.offsets for f in formats) else "",
    )


def _has_zero_points(formats: set[Format]) -> bool:
    """Then their minima, a zero point times a scale, need more digits than the scale has."""
    return any(f.offsets == "zero" for f in formats)


def read_kept(weight: Weight, checkpoint: Checkpoint) -> list[Source]:
    """The sources of a weight, for `Target.pack`: all floats, or all of them in the weight's format."""
    if (matrix := ordered_matrix(weight.sources[0])) is not None:
        order = checkpoint.stored(matrix).order
        assert order is not None, matrix
        return [order.astype(np.float32)]
    sources = [checkpoint.read(source) for source in weight.sources]
    if any(isinstance(s, QuantizedMatrix) and s.order is not None for s in sources) and not weight.reordered:
        sources = [as_floats(source) for source in sources]  # q, k and v, or gate and up, have several orders
    formats = {s.format if isinstance(s, QuantizedMatrix) else None for s in sources}
    if formats == {weight.format} or formats == {None}:
        return sources
    if weight.format == BF16 or any(f is not None and f.group_size != weight.format.group_size for f in formats):
        return [as_floats(source).astype(np.float32) for source in sources]
    return [widened(_quantized(source, weight.format.group_size), weight.format) for source in sources]


def in_row_order(weight: Weight, checkpoint: Checkpoint, sources: Sequence[Source]) -> Sequence[Source]:
    """`sources` with their rows in the order that the weight says, which is that of another matrix's inputs."""
    if not weight.row_order:
        return sources
    order = checkpoint.stored(weight.row_order).order
    assert order is not None, weight.row_order
    return [source.take(order) if isinstance(source, QuantizedMatrix) else source[order] for source in sources]


def _quantized(source: Source, group_size: int) -> QuantizedMatrix:
    if isinstance(source, QuantizedMatrix):
        return source
    fmt = Format("int8", group_size)
    codes, scales = quantize_weight(source.astype(np.float32), fmt)
    return QuantizedMatrix(fmt, codes[:, : source.shape[1]], scales)


def widened(matrix: QuantizedMatrix, fmt: Format) -> QuantizedMatrix:
    """The same values in a format that holds them: of more bits, of finer scales, with minima."""
    if matrix.format == fmt:
        return matrix
    codes, scales, offsets = matrix.codes, matrix.group_scales(), matrix.group_offsets()
    minima = None
    if fmt.offsets:
        minima = np.zeros_like(scales) if offsets is None else -offsets
        if offsets is None and fmt.kind == "int4":  # whose codes are not negative beside minima
            codes, minima = codes + np.int8(8), 8 * scales
    return QuantizedMatrix(fmt, codes, scales, minima=minima)


def conversion(weight: Weight, checkpoint: Checkpoint, sources: Sequence[Source]) -> Conversion:
    """What packing `sources`, of `read_kept`, does to a weight's values."""
    stored = [checkpoint.stored(source) for source in weight.sources]
    kinds = " and ".join(dict.fromkeys(s.kind for s in stored))
    if all(s.is_exact for s in stored) and all(
        isinstance(source, QuantizedMatrix) or weight.format == s.format for source, s in zip(sources, stored)
    ):
        return Conversion(kinds, 0.0)
    squared = [_squared_error(name, weight, checkpoint, source) for name, source in zip(weight.sources, sources)]
    error, norm = (sum(part[i] for part in squared) for i in (0, 1))
    return Conversion(kinds, float(np.sqrt(error / norm)) if norm else 0.0)


def _squared_error(name: str, weight: Weight, checkpoint: Checkpoint, source: Source) -> tuple[float, float]:
    """Of the sampled rows of one source: the error's sum of squares, and their own."""
    original = checkpoint.read(name) if isinstance(source, QuantizedMatrix) else source
    rows = np.unique(np.linspace(0, original.shape[0] - 1, SAMPLED_ROWS).astype(np.int64))
    exact = _rows(original, rows)
    if isinstance(source, QuantizedMatrix):
        packed = _rows(source, rows)
    elif weight.format == BF16:
        packed = round_to_bf16(exact)
    else:
        packed = dequantize_weight(*quantize_weight(exact, weight.format), exact.shape[1])
    return float(np.square(exact - packed, dtype=np.float64).sum()), float(np.square(exact, dtype=np.float64).sum())


def _rows(source: Source, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    return source.take(rows).dequantize() if isinstance(source, QuantizedMatrix) else source[rows].astype(np.float32)


def summary(conversions: Mapping[str, Conversion]) -> str:
    """As "169 matrices exact (Q4_K, Q8_0), 29 converted (Q6_K; relative error up to 5.1e-03)"."""
    exact = [c for c in conversions.values() if c.relative_error == 0]
    changed = [c for c in conversions.values() if c.relative_error > 0]
    parts = []
    if exact:
        parts.append(f"{len(exact)} matrices exact ({_kinds(exact)})")
    if changed:
        worst = max(c.relative_error for c in changed)
        parts.append(f"{len(changed)} converted ({_kinds(changed)}; relative error up to {worst:.1e})")
    return ", ".join(parts)


def _kinds(conversions: Sequence[Conversion]) -> str:
    return ", ".join(dict.fromkeys(c.stored for c in conversions))
