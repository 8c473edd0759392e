"""Formats: their names and sizes, and quantisation whose error is bounded as the definition promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwench.errors import ConfigError
from qwench.program.formats import (
    BF16,
    FP32,
    GROUP_SIZES,
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


@pytest.mark.parametrize("text", ["fp32", "bf16", *(f"{k}/g{g}" for k in ("int8", "int4") for g in GROUP_SIZES)])
def test_names_are_read_back(text: str) -> None:
    assert str(Format.parse(text)) == text


@pytest.mark.parametrize("text", ["", "int8", "int4/g100", "bf16/g32", "int8/g", "int8/gx", "fp8", "INT8/g32"])
def test_unknown_names(text: str) -> None:
    with pytest.raises(ConfigError):
        Format.parse(text)


def test_sizes() -> None:
    assert [f.bits_per_weight for f in (FP32, BF16, Format("int8", 128), Format("int4", 32))] == [32, 16, 8.25, 5]
    assert [BF16.padded_k(5), Format("int8", 128).padded_k(896), Format("int4", 32).padded_k(33)] == [6, 896, 64]
    assert not FP32.is_quantized and not BF16.is_quantized and Format("int4", 64).is_quantized


@settings(max_examples=60, deadline=None)
@given(matrices, st.sampled_from(GROUP_SIZES))
def test_int8_is_within_half_a_step(case: tuple[int, int, int, float], group: int) -> None:
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
    assert (error <= steps * 0.5001).all()
    peaks = np.abs(np.pad(weight, ((0, 0), (0, padded - weight.shape[1])))).reshape(len(weight), -1, group).max(axis=2)
    np.testing.assert_allclose(scales, peaks / 127, rtol=3e-7)


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
    rounding = 1e-12 * (padded**2).sum(axis=2)  # scales are fp32
    assert (squared[0] <= squared[1] * (1 + 1e-5) + rounding).all()


def test_int4_scale_is_the_least_squares_one() -> None:
    weight = matrix(8, 256, 3, 1.0)
    codes, scales = quantize_weight(weight, Format("int4", 128))
    groups, integers = weight.reshape(8, 2, 128).astype(np.float64), codes.reshape(8, 2, 128).astype(np.float64)
    best = (groups * integers).sum(2) / np.maximum((integers**2).sum(2), 1)
    np.testing.assert_allclose(scales, best, rtol=1e-5, atol=1e-12)


def test_int4_uses_all_sixteen_codes_of_an_even_grid() -> None:
    weight = np.tile(np.arange(-8, 8, dtype=np.float32), (1, 8)) * np.float32(0.25)
    codes, scales = quantize_weight(weight, Format("int4", 128))
    np.testing.assert_array_equal(codes, np.tile(np.arange(-8, 8), (1, 8)))
    np.testing.assert_array_equal(dequantize_weight(codes, scales, 128), weight)


@settings(max_examples=60, deadline=None)
@given(matrices, st.sampled_from(GROUP_SIZES))
def test_activations_are_within_half_a_step(case: tuple[int, int, int, float], group: int) -> None:
    x = matrix(*case)
    codes, scales = quantize_activation(x, group)
    error = np.abs(dequantize_weight(codes, scales, x.shape[1]).astype(np.float64) - x)
    steps = np.repeat(scales.astype(np.float64), group, axis=1)[:, : x.shape[1]]
    assert (error <= steps * 0.5001).all() and np.abs(codes.astype(int)).max() <= 127


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
