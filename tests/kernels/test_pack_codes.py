"""Matrices that were quantised elsewhere are packed code by code, and mean the very same numbers, or are refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest

from qwench.formats import NESTED_BLOCK, Format, quantize_weight
from qwench.program.ops import Weight
from qwench.quantized_matrix import QuantizedMatrix
from qwench.targets.cpu.target import CpuTarget
from qwench.targets.reference.target import ReferenceTarget
from qwench.targets.target import Target


@pytest.mark.parametrize("target", [CpuTarget(), ReferenceTarget()], ids=["cpu", "reference"])
@pytest.mark.parametrize("fmt", ["int8/g32", "int8/g128", "int4/g64", "int4/g256"])
@pytest.mark.parametrize("paired", [False, True])
def test_same_bytes_as_the_packer(target: Target, fmt: str, paired: bool) -> None:
    # Small integers, of which each row has the largest of its format: codes that every quantiser agrees on.
    rng = np.random.default_rng(4)
    kind = Format.parse(fmt)
    low, high = (-127, 127) if kind.kind == "int8" else (-8, 7)
    values = rng.integers(low, high + 1, (140, 300)).astype(np.float32)
    values[:, :: kind.group_size] = low
    weight = Weight("w", ("a", "b"), values.shape, kind, paired)
    tensors = target.packed_tensors(weight)
    first, second = ({t.name: np.full(t.num_bytes, 99, np.uint8) for t in tensors} for _ in range(2))
    target.pack(weight, [values[:70], values[70:]], first)
    codes, scales = quantize_weight(values, kind)
    halves = [QuantizedMatrix(kind, codes[rows, :300], scales[rows]) for rows in (slice(70), slice(70, None))]
    target.pack(weight, halves, second)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


FORGED = (
    "int8/g16/nested", "int8/g32", "int8/g64/fp16+min", "int8/g128/fp32+zero", "int8/g32/nested+min",
    "int4/g32/nested+min", "int4/g64/fp16", "int4/g128/bf16+zero", "int4/g256/fp32+min",
)  # fmt: skip


def forged_floats(rng: np.random.Generator, shape: tuple[int, int], is_sound: bool) -> npt.NDArray[np.float32]:
    """Small integers, which every encoding holds, or any 32 bits: NaN, infinities and subnormals too."""
    if is_sound:
        return rng.integers(-100, 101, shape).astype(np.float32)
    return rng.integers(0, 2**32, shape, np.uint32).view(np.float32)


def forged(
    rng: np.random.Generator, fmt: Format, shape: tuple[int, int], soundness: float = 0.8
) -> tuple[QuantizedMatrix, bool]:
    """A matrix whose parts may hold what no format does, and whether none of them does."""
    signed = fmt.kind == "int8" or not fmt.offsets
    low, high = (-128, 127) if fmt.kind == "int8" else (-8, 7) if signed else (0, 15)
    sound = [bool(rng.random() < soundness) for _ in range(6)]
    groups = -(-shape[1] // fmt.group_size)
    blocks = -(-shape[1] // NESTED_BLOCK)
    small, nested = (shape[0], groups), (shape[0], blocks)
    points = (-128, 128) if fmt.kind == "int8" else (0, 256)
    has_minima, is_nested = fmt.offsets == "min", fmt.scales == "nested"
    matrix = QuantizedMatrix(
        fmt,
        rng.integers(low if sound[0] else -128, (high if sound[0] else 127) + 1, shape).astype(np.int8),
        forged_floats(rng, small, sound[1]),
        rng.integers(*(points if sound[2] else (-(2**15), 2**15)), small).astype(np.int16)
        if fmt.offsets == "zero"
        else None,
        forged_floats(rng, small, sound[3]) if has_minima else None,
        forged_floats(rng, nested, sound[4]) if is_nested else None,
        forged_floats(rng, nested, sound[5]) if is_nested and has_minima else None,
    )
    return matrix, all(sound)


def is_packed(weight: Weight, matrix: QuantizedMatrix) -> bool:
    packed = {t.name: np.zeros(t.num_bytes, np.uint8) for t in CpuTarget().packed_tensors(weight)}
    try:
        CpuTarget().pack(weight, [matrix], packed)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", FORGED)
def test_forged_parts_are_packed_or_refused(name: str) -> None:
    rng, fmt = np.random.default_rng(8), Format.parse(name)
    outcomes = set()
    for _ in range(60):
        shape = int(rng.integers(1, 140)), int(rng.integers(1, 4)) * NESTED_BLOCK
        matrix, is_sound = forged(rng, fmt, shape)
        outcomes.add(packed := is_packed(Weight("w", ("a",), shape, fmt, False), matrix))
        assert packed or not is_sound
    assert outcomes == {True, False}


@pytest.mark.parametrize("part", ["codes", "scales", "minima", "block_scales", "block_minima"])
@pytest.mark.parametrize("rows_and_columns", [(1, 0), (0, 1), (-1, 0), (0, -1)])
def test_parts_of_other_shapes_are_refused(part: str, rows_and_columns: tuple[int, int]) -> None:
    """A part that is too short would be read beyond its end."""
    fmt, shape = Format.parse("int4/g32/nested+min"), (70, 512)
    weight = Weight("w", ("a",), shape, fmt, False)
    matrix, _ = forged(np.random.default_rng(0), fmt, shape, soundness=1.0)
    assert is_packed(weight, matrix)
    whole = getattr(matrix, part)
    other = np.ones([size + more for size, more in zip(whole.shape, rows_and_columns)], whole.dtype)
    assert not is_packed(weight, dataclasses.replace(matrix, **{part: other}))
