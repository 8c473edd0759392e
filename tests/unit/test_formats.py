"""Formats: their names and sizes, and quantisation whose error is bounded as the definition promises."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwench.errors import ConfigError
from qwench.formats import (
    BF16,
    FP32,
    GROUP_SIZES,
    INTEGER_ACTIVATIONS,
    Format,
    dequantize_weight,
    quantize_activation,
    quantize_weight,
)

matrices = st.tuples(st.integers(1, 5), st.integers(1, 300), st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1, 1e6]))


def matrix(rows: int, k: int, seed: int, scale: float) -> np.ndarray:
    """Normal values, some rows zero, some values a hundred times the others."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, k)) * scale
    values[rng.random((rows, k)) < 0.02] *= 100
    values[rng.random(rows) < 0.1] = 0
    return values.astype(np.float32)


KINDS = ("int16", "int8", "int4")


@pytest.mark.parametrize("text", ["fp32", "bf16", *(f"{k}/g{g}" for k in KINDS for g in GROUP_SIZES)])
def test_names_are_read_back(text: str) -> None:
    assert str(Format.parse(text)) == text


@pytest.mark.parametrize("text", ["", "int8", "int4/g100", "bf16/g32", "int8/g", "int8/gx", "fp8", "INT8/g32"])
def test_unknown_names(text: str) -> None:
    with pytest.raises(ConfigError):
        Format.parse(text)


def test_sizes() -> None:
    assert [BF16.padded_k(5), Format("int8", 128).padded_k(896), Format("int4", 32).padded_k(33)] == [6, 896, 64]
    assert not FP32.is_quantized and not BF16.is_quantized and Format("int4", 64).is_quantized


@settings(max_examples=60, deadline=None)
@given(matrices, st.sampled_from(GROUP_SIZES))
def test_int8_is_within_half_a_step_and_no_worse_than_the_plain_scale(
    case: tuple[int, int, int, float], group: int
) -> None:
    weight = matrix(*case)
    fmt = Format("int8", group)
    codes, scales = quantize_weight(weight, fmt)
    padded = fmt.padded_k(weight.shape[1])
    assert codes.shape == (len(weight), padded) and codes.dtype == np.int8
    assert scales.shape == (len(weight), padded // group) and scales.dtype == np.float32
    assert np.abs(codes.astype(int)).max() <= 127
    assert not codes[:, weight.shape[1] :].any()
    steps = np.repeat(scales.astype(np.float64), group, axis=1)[:, : weight.shape[1]]
    error = np.abs(dequantize_weight(codes, scales, weight.shape[1]).astype(np.float64) - weight)
    is_largest = np.abs(codes[:, : weight.shape[1]].astype(int)) == 127
    assert (error <= steps * np.where(is_largest, 1.55, 0.5001)).all()
    np.testing.assert_array_equal(scales, scales.astype(ml_dtypes.bfloat16))
    groups = np.pad(weight, ((0, 0), (0, padded - weight.shape[1]))).reshape(len(weight), -1, group)
    plain = (np.abs(groups).max(axis=2) / 127).astype(ml_dtypes.bfloat16).astype(np.float64)[..., None]
    rounded = np.rint(groups / np.where(plain == 0, 1, plain)) * plain
    ours = np.pad(error, ((0, 0), (0, padded - weight.shape[1]))).reshape(groups.shape)
    assert ((ours**2).sum(axis=2) <= ((rounded - groups) ** 2).sum(axis=2) * (1 + 1e-4)).all()


@settings(max_examples=60, deadline=None)
@given(matrices, st.sampled_from(GROUP_SIZES))
def test_int4_is_no_worse_than_the_plain_scale(case: tuple[int, int, int, float], group: int) -> None:
    weight = matrix(*case)
    k = weight.shape[1]
    codes, scales = quantize_weight(weight, Format("int4", group))
    assert codes.min() >= -8 and codes.max() <= 7 and not codes[:, k:].any()
    padded = np.pad(weight, ((0, 0), (0, codes.shape[1] - k))).reshape(len(weight), -1, group).astype(np.float64)
    ours = dequantize_weight(codes, scales, codes.shape[1]).astype(np.float64).reshape(padded.shape)
    plain_scale = np.abs(padded).max(axis=2, keepdims=True) / 7
    plain = np.rint(padded / np.where(plain_scale == 0, 1, plain_scale)) * plain_scale
    squared = [((values - padded) ** 2).sum(axis=2) for values in (ours, plain)]
    rounding = 2.0**-16 * (padded**2).sum(axis=2)  # of scales, by 2^-8 at most
    assert (squared[0] <= squared[1] * (1 + 1e-5) + rounding).all()


def test_int4_error_is_no_larger_than_with_any_scale_that_was_tried() -> None:
    """The search by hand, in float64: codes of a candidate, their least-squares scale, rounded."""
    weight = matrix(8, 256, 3, 1.0)
    codes, scales = quantize_weight(weight, Format("int4", 128))
    for row in range(8):
        for g in range(2):
            w = weight[row, g * 128 : (g + 1) * 128].astype(np.float64)
            q = codes[row, g * 128 : (g + 1) * 128].astype(np.float64)
            peak = w[np.abs(w).argmax()]
            ours = ((w - q * scales[row, g]) ** 2).sum()
            for code in np.arange(7, 10.75, 0.25) if peak else []:
                tried = np.clip(np.rint(w * (-code / peak)), -8, 7)
                scale = float(ml_dtypes.bfloat16((w * tried).sum() / (tried**2).sum()))
                assert ours <= ((w - tried * scale) ** 2).sum() * (1 + 1e-6)


def test_codes_follow_the_rounded_scale() -> None:
    weight = matrix(8, 256, 4, 1.0)
    for fmt in (Format("int8", 32), Format("int4", 32)):
        codes, scales = quantize_weight(weight, fmt)
        steps = np.repeat(scales, 32, axis=1).astype(np.float64)
        nearest = np.clip(np.rint(weight / np.where(steps == 0, 1, steps)), *fmt.code_range)
        np.testing.assert_array_equal(codes, nearest)


def test_int4_uses_all_sixteen_codes_of_an_even_grid() -> None:
    weight = np.tile(np.arange(-8, 8, dtype=np.float32), (1, 8)) * np.float32(0.25)
    codes, scales = quantize_weight(weight, Format("int4", 128))
    np.testing.assert_array_equal(codes, np.tile(np.arange(-8, 8), (1, 8)))
    np.testing.assert_array_equal(dequantize_weight(codes, scales, 128), weight)


@settings(max_examples=60, deadline=None)
@given(matrices, st.sampled_from(GROUP_SIZES), st.sampled_from(INTEGER_ACTIVATIONS))
def test_activations_are_within_half_a_step(case: tuple[int, int, int, float], group: int, kind: str) -> None:
    x = matrix(*case)
    codes, scales = quantize_activation(x, group, kind)
    steps = np.repeat(scales.astype(np.float64), group, axis=1)
    values = (codes.astype(np.float64) * steps)[:, : x.shape[1]]
    rounding = 4e-7 * np.abs(x)  # of fp32: of the scale, and of its inverse
    assert (np.abs(values - x) <= steps[:, : x.shape[1]] * 0.5001 + rounding).all()
    assert codes.dtype == kind and np.abs(codes.astype(int)).max() <= {"int8": 127, "int16": 16319}[kind]


def test_activations_do_not_depend_on_their_neighbours() -> None:
    x = matrix(5, 200, 7, 1.0)
    codes, scales = quantize_activation(x, 64)
    for row in range(5):
        alone = quantize_activation(x[row : row + 1], 64)
        np.testing.assert_array_equal(codes[row], alone[0][0])
        np.testing.assert_array_equal(scales[row], alone[1][0])


def test_no_rows_are_no_codes() -> None:
    """A step that wants no logits gives the head no rows."""
    codes, scales = quantize_activation(np.empty((0, 200), np.float32), 64)
    assert (codes.shape, scales.shape) == ((0, 256), (0, 4))
