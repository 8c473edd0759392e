"""Rotary position embedding: inverse frequencies and cos/sin tables in fp32, as transformers computes them.

Angles are fp32 products of position and inverse frequency, as transformers computes them: at position 100,000 the
rounding of that product is worth 0.004 rad, so a more exact angle would be a different model. Powers, sines and cosines
are made of operations that IEEE 754 rounds alike everywhere: those of NumPy and of C libraries differ by processor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Context, Decimal

import numpy as np
import numpy.typing as npt

from qwench.checkpoint.rope import RopeSpec

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> tuple[Float32, float]:
    """Inverse frequencies [head_dim / 2] fp32, and the factor that scales cos and sin.

    Source: transformers, modeling_rope_utils.py; YaRN is arXiv:2309.00071, LongRoPE arXiv:2402.13753.
    """
    p, theta = rope.parameters, rope.theta
    if rope.rope_type == "dynamic":
        theta = _dynamic_theta(theta, p, head_dim)
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # The nearest fp32. torch's fp32 power differs by one ulp in places, in one of 64 at theta 1e6 and head_dim 128
    # (torch 2.13, AVX-512); NumPy's own fp32 power in more.
    powers = np.array([_power(theta, float(e)) for e in exponent], np.float32)
    inv_freq = np.float32(1) / powers
    if rope.rope_type == "linear":
        return inv_freq / np.float32(p["factor"]), 1.0
    if rope.rope_type == "proportional":
        is_rotated = np.arange(head_dim // 2) < int(p["partial_rotary_factor"] * head_dim // 2)
        return inv_freq * is_rotated.astype(np.float32) / np.float32(p["factor"]), 1.0
    if rope.rope_type == "yarn":
        return _yarn(powers, p, theta, head_dim), _yarn_attention_factor(p)
    if rope.rope_type == "longrope":
        return _longrope(powers, rope), _longrope_attention_factor(p)
    if rope.rope_type == "llama3":
        return _llama3(inv_freq, p), 1.0
    return inv_freq, 1.0


def _dynamic_theta(theta: float, p: Mapping[str, float], head_dim: int) -> float:
    """NTK scaling for sequences of p["seq_len"]; transformers computes it in fp32 as soon as there is any."""
    if p["seq_len"] <= p["original_max_position_embeddings"]:
        return theta
    stretch = np.float32(p["factor"]) * np.float32(p["seq_len"]) / np.float32(p["original_max_position_embeddings"])
    scale = np.float32(stretch - np.float32(p["factor"] - 1))
    return float(np.float32(theta) * np.float32(_power(float(scale), head_dim / (head_dim - 2))))


def _power(base: float, exponent: float) -> float:
    """The same on every machine, unlike the C library's."""
    return float(Context(prec=30).power(Decimal(base), Decimal(exponent)))


def _longrope(powers: Float32, rope: RopeSpec) -> Float32:
    """Long factors for a model whose sequences may be longer than those that it was trained for."""
    is_long = rope.parameters["seq_len"] > rope.parameters["original_max_position_embeddings"]
    factors = np.array(rope.long_factors if is_long else rope.short_factors, np.float32)
    inv_freq: Float32 = np.float32(1) / (factors * powers)
    return inv_freq


def _longrope_attention_factor(p: Mapping[str, float]) -> float:
    if "attention_factor" in p:
        return p["attention_factor"]
    if p["factor"] <= 1:
        return 1.0
    return math.sqrt(1 + math.log(p["factor"]) / math.log(p["original_max_position_embeddings"]))


def _yarn(powers: Float32, p: Mapping[str, float], theta: float, head_dim: int) -> Float32:
    """Blends interpolated and original frequencies over a ramp between two numbers of rotations."""

    def dimension(rotations: float) -> float:
        turns = p["original_max_position_embeddings"] / (rotations * 2 * math.pi)
        return (head_dim * math.log(turns)) / (2 * math.log(theta))

    low, high = dimension(p["beta_fast"]), dimension(p["beta_slow"])
    if p["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    steps = np.arange(head_dim // 2, dtype=np.float32)
    ramp = np.clip((steps - np.float32(low)) / np.float32(high - low), 0, 1)
    keep = np.float32(1) - ramp
    interpolated = np.float32(1) / (np.float32(p["factor"]) * powers)
    blended: Float32 = interpolated * (np.float32(1) - keep) + (np.float32(1) / powers) * keep
    return blended


def _yarn_attention_factor(p: Mapping[str, float]) -> float:
    def mscale(scale: float, weight: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0

    if "attention_factor" in p:
        return p["attention_factor"]
    if "mscale" in p and "mscale_all_dim" in p:
        return mscale(p["factor"], p["mscale"]) / mscale(p["factor"], p["mscale_all_dim"])
    return mscale(p["factor"])


def _llama3(inv_freq: Float32, p: Mapping[str, float]) -> Float32:
    """Long wavelengths are divided by `factor`, short ones kept, those between blended."""
    low, high = p["low_freq_factor"], p["high_freq_factor"]
    original = p["original_max_position_embeddings"]
    wavelength = np.float32(2 * math.pi) / inv_freq
    scaled = np.where(wavelength > np.float32(original / low), inv_freq / np.float32(p["factor"]), inv_freq)
    smooth = (np.float32(original) / wavelength - np.float32(low)) / np.float32(high - low)
    blended = (np.float32(1) - smooth) * scaled / np.float32(p["factor"]) + smooth * scaled
    medium = ~(wavelength < np.float32(original / high)) & ~(wavelength > np.float32(original / low))
    return np.where(medium, blended, scaled).astype(np.float32)


def cos_sin(inv_freq: Float32, factor: float, start: int, stop: int) -> Float32:
    """Rows of the RoPE table: [stop - start, head_dim] fp32, cosines in the first half and sines in the second."""
    angles = np.arange(start, stop, dtype=np.float32)[:, None] * inv_freq[None, :]
    cosines, sines = _cos_sin(angles.astype(np.float64))
    return np.concatenate([cosines, sines], axis=1).astype(np.float32) * np.float32(factor)


# pi / 2 in parts of 33 bits, whose products with whole numbers below 2^20 are exact, and the polynomials of sine and
# cosine within pi / 4 of 0: Cody and Waite's method with the coefficients of fdlibm's e_rem_pio2.c, k_sin.c, k_cos.c.
_HALF_PI = (1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624871116645580e-21)
_SINE = (
    -1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04,
    2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10,
)  # fmt: skip
_COSINE = (
    4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05,
    -2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11,
)  # fmt: skip


def _cos_sin(angles: Float64) -> tuple[Float64, Float64]:
    """Cosines and sines of angles from 0 to 1.6 million, to about 1e-16."""
    turns = np.rint(angles * (2 / math.pi))
    rest = angles
    for part in _HALF_PI:
        rest = rest - turns * part
    square = rest * rest
    sine = rest + rest * square * _polynomial(_SINE, square)
    cosine = 1 - (square * 0.5 - square * square * _polynomial(_COSINE, square))
    quarter = turns.astype(np.int64) & 3
    swaps = (quarter & 1).astype(bool)
    cosines, sines = np.where(swaps, sine, cosine), np.where(swaps, cosine, sine)
    return np.where((quarter == 1) | (quarter == 2), -cosines, cosines), np.where(quarter >= 2, -sines, sines)


def _polynomial(coefficients: tuple[float, ...], x: Float64) -> Float64:
    result = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient
    return result
