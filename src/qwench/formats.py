"""What the numbers mean: weight and activation formats, and their quantisation as a NumPy specification.

Knows nothing of layouts: how codes are ordered in memory is a target's business. The native packer is tested
against `quantize_weight`, the native kernels against `quantize_activation`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from qwench.errors import ConfigError

Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]

WEIGHT_KINDS = ("bf16", "int8", "int4")
INTEGER_ACTIVATIONS = ("int8", "int16")  # beside integer weights
FLOAT_ACTIVATIONS = ("fp32", "bf16")  # beside bf16 weights
ACTIVATION_KINDS = FLOAT_ACTIVATIONS + INTEGER_ACTIVATIONS
GROUP_SIZES = (32, 64, 128, 256)
SMALLEST_GROUP = 16  # of int8 embeddings and heads that were quantised elsewhere, and what meets them
ScaleEncoding = Literal["bf16", "fp16", "fp32", "nested"]
Offsets = Literal["", "min", "zero"]
NESTED_BLOCK = 256  # values along K that share the factor of nested scales


@dataclass(frozen=True)
class Format:
    """How one matrix, or one activation, is stored. `group_size` counts values along K that share a scale; 0 for bf16
    and fp32. int16 is for activations alone.

    scales: how a group's scale is stored; what qwench quantises has bf16. nested: a whole number from -128 to 127,
        times an fp16 factor for each NESTED_BLOCK values along K, as in llama.cpp's K-quants.
    offsets: what a group's values have beside code * scale. min: less a minimum, stored as the scales are. zero: a
        zero point, a whole number that is taken off the codes. int4 codes with offsets run from 0 to 15.
    """

    kind: Literal["fp32", "bf16", "int16", "int8", "int4"]
    group_size: int = 0
    scales: ScaleEncoding = "bf16"
    offsets: Offsets = ""

    def __post_init__(self) -> None:
        if self.kind in ("int16", "int8", "int4"):
            if self.group_size not in GROUP_SIZES and (self.kind == "int4" or self.group_size != SMALLEST_GROUP):
                raise ConfigError(f"group_size is {self.group_size}; allowed: {', '.join(map(str, GROUP_SIZES))}")
        elif self.group_size:
            raise ConfigError(f"format {self.kind} has no groups, but group_size is {self.group_size}")
        if self.scales not in get_args(ScaleEncoding) or self.offsets not in get_args(Offsets):
            raise ConfigError(f"there are no scales {self.scales!r} with offsets {self.offsets!r}")
        if (self.scales, self.offsets) != ("bf16", "") and self.kind not in ("int8", "int4"):
            raise ConfigError(f"format {self.kind} has no scales {self.scales!r} and no offsets")
        if self.scales == "nested" and self.offsets == "zero":
            raise ConfigError("nested scales have minima, not zero points")

    @property
    def is_quantized(self) -> bool:
        return self.group_size > 0

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest integer code of a weight that qwench quantises."""
        return {"int8": (-127, 127), "int4": (-8, 7)}[self.kind]

    @property
    def num_parts(self) -> int:
        """int8 codes that a value takes, so that kernels multiply nothing wider."""
        return 2 if self.kind == "int16" else 1

    def padded_k(self, k: int) -> int:
        """K rounded up to whole groups (whole pairs for bf16); the padding holds zeros."""
        multiple = self.group_size or 2
        return -(-k // multiple) * multiple

    def __str__(self) -> str:
        """Such as "bf16", "int4/g128", "int8/g32/fp16", "int4/g32/nested+min"."""
        if not self.group_size:
            return self.kind
        scales = "" if (self.scales, self.offsets) == ("bf16", "") else f"/{self.scales}"
        return f"{self.kind}/g{self.group_size}{scales}{f'+{self.offsets}' if self.offsets else ''}"

    @classmethod
    def parse(cls, text: str) -> Format:
        """Inverse of `str`."""
        found = _FORMAT.fullmatch(text)
        if not found:
            raise ConfigError(f"unknown format {text!r}")
        kind, group, scales, offsets = found.groups()
        return cls(kind, int(group or 0), scales or "bf16", offsets or "")  # type: ignore[arg-type]


_FORMAT = re.compile(r"(fp32|bf16|int16|int8|int4)(?:/g(\d{1,4})(?:/(bf16|fp16|fp32|nested)(?:\+(min|zero))?)?)?")

FP32 = Format("fp32")
BF16 = Format("bf16")

# A group whose largest magnitude is no more than this counts as zeros: the inverse of its scale would overflow.
NO_MAGNITUDE = np.float32(1e-30)

# The largest code of an activation. An int16 one is 128 * high + low, two int8 codes: high at most 127, low 63.
LARGEST_CODE = {"int8": 127, "int16": 127 * 128 + 63}

# Candidate scales of an int4 group, as the code that the largest weight lands on. 8 uses all sixteen codes
# without clipping; larger values clip the largest weight for finer steps elsewhere.
INT4_CANDIDATES = np.arange(7.0, 10.75, 0.25, dtype=np.float32)


def _groups(x: Float32, group_size: int) -> Float32:
    """[rows, K] -> [rows, ceil(K / group), group], zero-padded."""
    rows, k = x.shape
    padded = -(-k // group_size) * group_size
    if padded != k:
        x = np.pad(x, ((0, 0), (0, padded - k)))
    return x.reshape(rows, padded // group_size, group_size)


def _inverse(numerator: float | np.float32, peak: Float32) -> Float32:
    """numerator / peak, and 0 for groups that count as zeros."""
    is_zero = np.abs(peak) <= NO_MAGNITUDE
    return np.where(is_zero, np.float32(0), np.float32(numerator) / np.where(is_zero, np.float32(1), peak))


def reciprocal(scale: Float32) -> Float32:
    """1 / scale, and 0 for scales of groups that are zeros."""
    is_zero = scale == 0
    return np.where(is_zero, np.float32(0), np.float32(1) / np.where(is_zero, np.float32(1), scale))


def round_to_bf16(x: Float32) -> Float32:
    """The nearest bf16, which has fp32's range, ties to even; as fp32. For finite values."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def quantize_weight(weight: Float32, fmt: Format) -> tuple[Int8, Float32]:
    """Symmetric quantisation per (row, group along K).

    weight: [N, K] fp32. Returns codes [N, padded K] int8 and scales [N, padded K / group] fp32, which bf16 holds, with
    weight ~ code * scale. The scale comes first, rounded by up to 0.4 %, then code = rint(w * (1 / scale)) within the
    codes there are, so that rounding costs hardly anything. Scales are chosen for the least squared error.
    """
    groups = _groups(weight, fmt.group_size)
    scale = _int8_scales(groups) if fmt.kind == "int8" else _int4_scales(groups)
    codes = np.clip(np.rint(groups * reciprocal(scale)[..., None]), *fmt.code_range)
    return codes.astype(np.int8).reshape(len(weight), -1), scale


def _int8_scales(groups: Float32) -> Float32:
    """[N, G, group] -> [N, G]: the bf16 next to max|w| / 127, or its neighbour below or above: the best of three."""
    amax = np.abs(groups).max(axis=2)
    is_zero = amax <= NO_MAGNITUDE
    nearest = round_to_bf16(np.where(is_zero, np.float32(1), amax * np.float32(1 / 127))).view(np.int32)
    best_scale, best_error = np.zeros_like(amax), np.full_like(amax, np.inf)
    for step in (-1, 0, 1):
        scale = (nearest + np.int32(step << 16)).view(np.float32)
        codes = np.clip(np.rint(groups * reciprocal(scale)[..., None]), -127, 127)
        error = np.square(groups - codes * scale[..., None]).sum(axis=2)
        best_scale = np.where(error < best_error, scale, best_scale)
        best_error = np.minimum(error, best_error)
    return np.where(is_zero, np.float32(0), best_scale)


def _int4_scales(groups: Float32) -> Float32:
    """[N, G, group] -> [N, G]: of a few candidates the one with the least squared error, each with the least-squares
    scale of its codes, rounded (the idea of llama.cpp's make_qx_quants, with a wider group)."""
    most, least = groups.max(axis=2, keepdims=True), groups.min(axis=2, keepdims=True)
    unit = _inverse(-1, np.where(most >= -least, most, least))
    best_gain = np.full(unit.shape, -1, np.float32)
    best_scale = np.zeros_like(unit)
    for candidate in INT4_CANDIDATES:
        codes = np.clip(np.rint(groups * (unit * candidate)), -8, 7).astype(np.float32)
        # The squared error is sum(w^2) - gain, so the largest gain wins.
        dot = (groups * codes).sum(axis=2, keepdims=True)
        norm = np.maximum((codes * codes).sum(axis=2, keepdims=True), 1)
        scale = round_to_bf16(dot / norm)
        gain = scale * (np.float32(2) * dot - scale * norm)
        better = gain > best_gain
        best_gain = np.where(better, gain, best_gain)
        best_scale = np.where(better, scale, best_scale)
    return best_scale[..., 0]


def dequantize_weight(codes: Int8, scales: Float32, k: int) -> Float32:
    """codes [N, padded K] and scales [N, groups] -> weight [N, k] fp32."""
    groups = codes.reshape(len(codes), scales.shape[1], -1).astype(np.float32)
    return (groups * scales[..., None]).reshape(len(codes), -1)[:, :k]


def largest_word(num_terms: int) -> int:
    """Of codes of 16 bits, the largest so that a sum of `num_terms` products of two of them fits 32 bits."""
    return math.isqrt((2**31 - 1) // num_terms)


def quantize_activation(
    x: Float32, group_size: int, kind: str = "int8", largest: int | None = None
) -> tuple[npt.NDArray[Any], Float32]:
    """Symmetric integers per (token, group along K): scale = max|x| / L, code = rint(x * (L / max|x|)), where L is
    `largest`, or the kind's LARGEST_CODE.

    x: [tokens, K] fp32. Returns codes [tokens, padded K], of the kind's dtype, and scales [tokens, groups] fp32.
    """
    groups, largest = _groups(x, group_size), largest or LARGEST_CODE[kind]
    amax = np.abs(groups).max(axis=2)
    codes = np.rint(groups * _inverse(largest, amax)[..., None]).astype(kind)
    return codes.reshape(len(x), groups.shape[1] * group_size), (amax * np.float32(1 / largest)).astype(np.float32)
