"""Packing: the native quantisers against their NumPy specification, and the layout read back."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from qwench.formats import Format, dequantize_weight, quantize_weight
from qwench.program.ops import Weight
from qwench.targets.cpu import _native
from qwench.targets.cpu.target import CpuTarget

VARIANTS = _native.supported_variants()


def pack(variant: str, weight: Weight, sources: list[npt.NDArray[np.generic]]) -> npt.NDArray[np.uint8]:
    target = CpuTarget("cpu", variant)
    (tensor,) = target.packed_tensors(weight)
    out = np.full(tensor.shape, 255, np.uint8)
    target.pack(weight, sources, {weight.name: out})
    return out


def unpack(packed: npt.NDArray[np.uint8], fmt: Format, columns: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes [columns, padded_k] and scales [columns, groups] from panels of 64 columns."""
    groups, group = fmt.padded_k(k) // fmt.group_size, fmt.group_size
    code_bytes = 64 * group // (2 if fmt.kind == "int4" else 1)
    panels = packed.reshape(-1, groups, 128 + code_bytes)
    scales = panels[:, :, :128].copy().view(ml_dtypes.bfloat16).astype(np.float32)
    scales = scales.transpose(0, 2, 1).reshape(-1, groups)
    raw = panels[:, :, 128:]
    if fmt.kind == "int4":
        pairs = raw.reshape(-1, groups, group // 8, 64, 4)
        codes = np.stack([pairs & 15, pairs >> 4], axis=3).astype(np.int16) - 8  # [p, g, k/8, 2, 64, 4]
        codes = codes.transpose(0, 4, 1, 2, 3, 5)
    else:
        codes = (raw.reshape(-1, groups, group // 4, 64, 4).astype(np.int16) - 128).transpose(0, 3, 1, 2, 4)
    return codes.reshape(-1, groups * group)[:columns].astype(np.int8), scales[:columns]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("group", [32, 128, 256])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_int8_is_the_specification(variant: str, group: int, dtype: type) -> None:
    rng = np.random.default_rng(group)
    values = rng.standard_normal((70, 200)).astype(dtype)
    values[3] = 0
    if dtype is not np.float16:
        values[4] *= dtype(1e-38)  # 127 / max|w| would be infinite
    fmt = Format("int8", group)
    codes, scales = unpack(pack(variant, Weight("w", ("w",), values.shape, fmt), [values]), fmt, 70, 200)
    expected_codes, expected_scales = quantize_weight(values.astype(np.float32), fmt)
    np.testing.assert_array_equal(codes, expected_codes)
    np.testing.assert_array_equal(scales, expected_scales)


@pytest.mark.parametrize("variant", VARIANTS)
def test_int4_is_as_good_as_the_specification(variant: str) -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((100, 300)).astype(np.float32)
    values[5] = 0
    fmt = Format("int4", 128)
    codes, scales = unpack(pack(variant, Weight("w", ("w",), values.shape, fmt), [values]), fmt, 100, 300)
    spec_codes, spec_scales = quantize_weight(values, fmt)
    ours = ((dequantize_weight(codes, scales, 300) - values) ** 2).sum(axis=1)
    theirs = ((dequantize_weight(spec_codes, spec_scales, 300) - values) ** 2).sum(axis=1)
    # Sums in another order may pick another candidate of about equal error.
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)
    assert ours.sum() < theirs.sum() * (1 + 1e-4)
    assert np.mean(codes == spec_codes) > 0.98
    naive = np.abs(values[:, :128]).max(axis=1) / 7
    plain = np.clip(np.rint(values[:, :128] / np.maximum(naive, 1e-9)[:, None]), -8, 7) * naive[:, None]
    best = dequantize_weight(codes, scales, 300)[:, :128]
    assert ((best - values[:, :128]) ** 2).sum() < 0.95 * ((plain - values[:, :128]) ** 2).sum()


def test_packing_gives_the_same_bits_on_every_variant() -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_normal((130, 257)).astype(ml_dtypes.bfloat16)
    for fmt in (Format("bf16"), Format("int8", 64), Format("int4", 128)):
        weight = Weight("w", ("w",), values.shape, fmt)
        first, *others = [pack(v, weight, [values]) for v in VARIANTS]
        for other in others:
            np.testing.assert_array_equal(other, first)


def test_pairs_lie_side_by_side_and_stacks_follow_each_other() -> None:
    rng = np.random.default_rng(3)
    gate, up = (rng.standard_normal((40, 64)).astype(np.float32) for _ in range(2))
    fmt = Format("int8", 64)
    paired = pack(VARIANTS[0], Weight("w", ("g", "u"), (80, 64), fmt, paired=True), [gate, up])
    codes, scales = unpack(paired, fmt, 128, 64)
    values = dequantize_weight(codes, scales, 64)
    order = [gate[:32], up[:32], gate[32:], np.zeros((24, 64)), up[32:], np.zeros((24, 64))]
    np.testing.assert_allclose(values, np.concatenate(order), atol=0.03)
    stacked = pack(VARIANTS[0], Weight("w", ("g", "u"), (80, 64), fmt), [gate, up])
    codes, scales = unpack(stacked, fmt, 80, 64)
    np.testing.assert_allclose(dequantize_weight(codes, scales, 64), np.concatenate([gate, up]), atol=0.03)


def test_bf16_rounds_to_nearest_even() -> None:
    values = np.array([[1.0, 1.00390625, 1.01171875, 3.0e38, -1e-40, 65504.0]], np.float32)
    packed = pack(VARIANTS[0], Weight("w", ("w",), values.shape), [values]).view(np.uint16).reshape(-1, 64, 2)
    packed = packed[:, :, ::-1]  # the first of a pair is in the high half
    np.testing.assert_array_equal(packed[:, 0].reshape(-1), values.astype(ml_dtypes.bfloat16).view(np.uint16)[0])
    assert not packed[:, 1:].any()
