"""What readers of quantised Hugging Face checkpoints share: their protocol, and codes with scales -> a matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qwench.checkpoint.checkpoint import StoredTensor
from qwench.errors import CheckpointError
from qwench.formats import Float32, Format, ScaleEncoding
from qwench.quantized_matrix import QuantizedMatrix
from qwench.safetensors_file import TensorEntry

Array = npt.NDArray[Any]
Read = Callable[[str], Array]  # a stored tensor of any dtype, by its name in the files

KEPT_GROUPS = (256, 128, 64, 32)
CHANNEL_GROUP = 128  # of rows with one scale, which groups repeat
ROUNDED = Format("int8", 32)  # what becomes of groups that none of KEPT_GROUPS divides
SCALE_ENCODINGS: Mapping[str, ScaleEncoding] = {"F16": "fp16", "BF16": "bf16", "F32": "fp32"}


class Method(Protocol):
    """Reads the matrices of one way to quantise. `module` is a matrix's name without ".weight"."""

    def parts(self, module: str) -> list[str]:
        """The stored tensors that make up a matrix; empty if the module isn't quantised."""
        ...

    def check(self, module: str, shape: tuple[int, int]) -> None:
        """Compares dtypes and shapes of the parts with what a matrix [N, K] needs. Raises CheckpointError."""
        ...

    def stored(self, module: str, shape: tuple[int, int]) -> StoredTensor: ...

    def read(self, module: str, shape: tuple[int, int]) -> QuantizedMatrix | Float32: ...


def kept_group(group_size: int) -> int | None:
    """The largest group of qwench's that divides one of a checkpoint, or None. -1, a whole row: CHANNEL_GROUP."""
    if group_size == -1:
        return CHANNEL_GROUP
    return next((size for size in KEPT_GROUPS if group_size % size == 0), None)


def num_groups(k: int, group_size: int) -> int:
    return 1 if group_size == -1 else -(-k // group_size)


def order_of_groups(groups: Array, in_order: Array) -> npt.NDArray[np.int32] | None:
    """The inputs in the order of their groups [K], or None if the groups aren't of the size that they should be.

    groups, in_order: [K], the group of each input, and the same as it is where inputs lie in order.
    """
    order = np.argsort(groups, kind="stable").astype(np.int32)
    return order if np.array_equal(groups[order], in_order) else None


def kept_stored(
    kind: str,
    is_int4: bool,
    group_size: int,
    scale_dtype: str,
    has_zero_points: bool,
    order: npt.NDArray[np.int32] | None = None,
) -> StoredTensor:
    """What integer codes become: the very same, unless their groups fit none of qwench's."""
    group = kept_group(group_size)
    if group is None:
        return StoredTensor(kind, ROUNDED, is_exact=False)
    fmt = Format("int4" if is_int4 else "int8", group, SCALE_ENCODINGS[scale_dtype], "zero" if has_zero_points else "")
    return StoredTensor(kind, fmt, is_exact=True, order=order)


def kept_matrix(
    stored: StoredTensor, codes: Array, scales: Array, zero_points: Array | None, group_size: int
) -> QuantizedMatrix | Float32:
    """codes: [N, K]; scales, zero_points: [N, groups of `group_size`]; zero_points None where they are all 0."""
    k, wide = codes.shape[1], scales.astype(np.float32)
    if not stored.is_exact:
        width = k if group_size == -1 else group_size
        points = 0 if zero_points is None else np.repeat(zero_points, width, axis=1)[:, :k]
        values: Float32 = (codes.astype(np.float32) - points) * np.repeat(wide, width, axis=1)[:, :k]
        return values
    group = stored.format.group_size
    groups = -(-k // group)
    times = groups if group_size == -1 else group_size // group

    def spread(array: Array) -> Array:
        return np.ascontiguousarray(np.repeat(array, times, axis=1)[:, :groups])

    return QuantizedMatrix(
        stored.format,
        np.ascontiguousarray(codes.astype(np.int8)),
        spread(wide),
        spread(zero_points.astype(np.int16)) if stored.format.offsets and zero_points is not None else None,
        order=stored.order,
    )


def unpack_bits(words: Array, bits: int) -> npt.NDArray[np.uint8]:
    """[rows, n] int32, each row a stream of values of `bits` bits, the lowest first -> [rows, n * 32 / bits] uint8."""
    data = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return data
    if bits in (2, 4):
        out = np.empty((*data.shape, 8 // bits), np.uint8)
        for i in range(8 // bits):
            np.bitwise_and(data >> np.uint8(bits * i), (1 << bits) - 1, out=out[..., i])
        return out.reshape(len(data), -1)
    stream = np.unpackbits(data, axis=1, bitorder="little").reshape(len(data), -1, bits)
    weights = (1 << np.arange(bits)).astype(np.uint8)
    values: npt.NDArray[np.uint8] = (stream * weights).sum(axis=2, dtype=np.uint8)
    return values


def require(
    entries: Mapping[str, TensorEntry], name: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]
) -> TensorEntry:
    """The entry of a part, if it is there with one of these dtypes and shapes. Raises CheckpointError."""
    entry = entries.get(name)
    if entry is None:
        raise CheckpointError(f"the checkpoint lacks tensor {name!r}, a part of a quantised matrix")
    if entry.dtype not in dtypes or entry.shape not in shapes:
        told = " or ".join(str(list(shape)) for shape in shapes)
        raise CheckpointError(
            f"tensor {name!r} is {entry.dtype} {list(entry.shape)}; a matrix of this config.json needs "
            f"{' or '.join(dtypes)} {told}"
        )
    return entry


def check_scales(scales: Array, name: str) -> None:
    """Raises CheckpointError if one isn't finite."""
    if not np.isfinite(scales.astype(np.float32)).all():
        raise CheckpointError(f"tensor {name!r} holds NaN or infinite scales")


def words_of(values: int, bits: int) -> int:
    """int32 words that hold so many values of `bits` bits."""
    return math.ceil(values * bits / 32)
