"""Matrices that were quantised elsewhere are packed code by code, and mean the very same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from qwench.formats import Format, quantize_weight
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
