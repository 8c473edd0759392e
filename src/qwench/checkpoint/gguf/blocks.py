"""Blocks of ggml's quantised types -> codes, scales and minima.

Layouts: ggml-common.h and ggml-quants.c of github.com/ggml-org/llama.cpp. Every function takes blocks [rows, blocks a
row, bytes] uint8; values of a block are in its order along K.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwench.checkpoint.gguf.block_types import BLOCK_TYPES, EXACT_HEAD
from qwench.formats import Float32, Int8
from qwench.quantized_matrix import QuantizedMatrix

Bytes = npt.NDArray[np.uint8]
CHUNK_BYTES = 1 << 20  # of source, decoded at once: what fits a processor's cache with its intermediates

_SHIFTS = np.array([0, 2, 4, 6], np.uint8)
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


@dataclass(frozen=True)
class _Decoded:
    """codes: [rows, K]; the others as QuantizedMatrix has them."""

    codes: npt.NDArray[np.generic]
    scales: Float32
    minima: Float32 | None = None
    block_scales: Float32 | None = None
    block_minima: Float32 | None = None


def _half(blocks: Bytes, at: int) -> Float32:
    """The fp16 at byte `at` of each block: [rows, blocks] fp32."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0].astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """[..., n] bytes -> [..., 2, n]: their low nibbles, then their high ones."""
    out = np.empty((*packed.shape[:-1], 2, packed.shape[-1]), np.uint8)
    np.bitwise_and(packed, 15, out=out[..., 0, :])
    np.right_shift(packed, 4, out=out[..., 1, :])
    return out


def _rows(codes: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return codes.reshape(len(codes), -1)


def _fifth_bits(packed: Bytes) -> Bytes:
    """Four bytes of each block, bit i of which belongs to value i: [rows, blocks, 2, 16], 16 or 0."""
    bits = np.unpackbits(packed, axis=-1, bitorder="little")
    fifth: Bytes = bits << np.uint8(4)
    return fifth.reshape(*bits.shape[:-1], 2, 16)


def _q4_0(b: Bytes) -> _Decoded:
    return _Decoded(_rows(_nibbles(b[..., 2:])).view(np.int8) - np.int8(8), _half(b, 0))


def _q4_1(b: Bytes) -> _Decoded:
    return _Decoded(_rows(_nibbles(b[..., 4:])), _half(b, 0), -_half(b, 2))


def _q5_0(b: Bytes) -> _Decoded:
    codes = _nibbles(b[..., 6:]) | _fifth_bits(b[..., 2:6])
    return _Decoded(_rows(codes).view(np.int8) - np.int8(16), _half(b, 0))


def _q5_1(b: Bytes) -> _Decoded:
    return _Decoded(_rows(_nibbles(b[..., 8:]) | _fifth_bits(b[..., 4:8])), _half(b, 0), -_half(b, 2))


def _q8_0(b: Bytes) -> _Decoded:
    return _Decoded(_rows(np.ascontiguousarray(b[..., 2:])), _half(b, 0))


def _iq4_nl(b: Bytes) -> _Decoded:
    return _Decoded(_rows(IQ4_VALUES[_nibbles(b[..., 2:])]), _half(b, 0))


def _six_bits(packed: Bytes) -> tuple[Float32, Float32]:
    """The 8 scales and 8 minima of a K-quant in its 12 bytes: [rows, blocks * 8] fp32 each."""
    first, second, third = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6) << 4], axis=-1)
    minima = np.concatenate([second & 63, third >> 4 | (second >> 6) << 4], axis=-1)
    return _rows(scales).astype(np.float32), _rows(minima).astype(np.float32)


def _q4_k(b: Bytes) -> _Decoded:
    codes = _nibbles(b[..., 16:].reshape(*b.shape[:2], 4, 32))
    return _Decoded(_rows(codes), *_six_bits(b[..., 4:16]), _half(b, 0), _half(b, 2))


def _q5_k(b: Bytes) -> _Decoded:
    codes = _nibbles(b[..., 48:].reshape(*b.shape[:2], 4, 32))
    bits = np.unpackbits(b[..., 16:48, None], axis=-1, bitorder="little")  # [rows, blocks, 32 values, 8 sub-blocks]
    codes |= (np.moveaxis(bits, -1, -2) << 4).reshape(codes.shape)
    return _Decoded(_rows(codes), *_six_bits(b[..., 4:16]), _half(b, 0), _half(b, 2))


def _iq4_xs(b: Bytes) -> _Decoded:
    high = np.ascontiguousarray(b[..., 2:4]).view(np.uint16) >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    low = np.moveaxis(_nibbles(b[..., 4:8]), -1, -2).reshape(*b.shape[:2], 8)
    scales = (low | high << 4).astype(np.float32) - 32
    codes = IQ4_VALUES[_nibbles(b[..., 8:].reshape(*b.shape[:2], 8, 16))]
    return _Decoded(_rows(codes), scales.reshape(len(b), -1), None, _half(b, 0))


def _two_bits(packed: Bytes) -> Bytes:
    """64 bytes of a block -> [rows, blocks, 8 sub-blocks of 32]: of each half the lowest bit pairs, then the next."""
    halves = packed.reshape(*packed.shape[:2], 2, 1, 32)
    pairs: Bytes = halves >> _SHIFTS[:, None] & np.uint8(3)
    return pairs.reshape(*packed.shape[:2], 8, 32)


def _q2_k(b: Bytes) -> _Decoded:
    scales, minima = (_rows(part).astype(np.float32) for part in (b[..., :16] & 15, b[..., :16] >> 4))
    return _Decoded(_rows(_two_bits(b[..., 16:80])), scales, minima, _half(b, 80), _half(b, 82))


def _q3_k(b: Bytes) -> _Decoded:
    low = _two_bits(b[..., 32:96])
    high = np.moveaxis(np.unpackbits(b[..., :32, None], axis=-1, bitorder="little"), -1, -2)
    codes = low.view(np.int8) - ((1 - high) << 2).astype(np.int8)
    packed = b[..., 96:108]
    four = _nibbles(packed[..., :8]).reshape(*b.shape[:2], 16)
    two = (packed[..., None, 8:] >> _SHIFTS[:, None] & 3).reshape(*b.shape[:2], 16)
    scales = (four | two << 4).astype(np.float32) - 32
    return _Decoded(_rows(codes), scales.reshape(len(b), -1), None, _half(b, 108))


def _q6_k(b: Bytes) -> _Decoded:
    low = b[..., :128].reshape(*b.shape[:2], 2, 1, 64)
    four = (low >> _SHIFTS[::2, None] & 15).reshape(*b.shape[:2], 8, 32)
    high = b[..., 128:192].reshape(*b.shape[:2], 2, 1, 32)
    two = (high >> _SHIFTS[:, None] & 3).reshape(*b.shape[:2], 8, 32)
    codes = (four | two << 4).view(np.int8) - np.int8(32)
    scales = np.ascontiguousarray(b[..., 192:208]).view(np.int8).astype(np.float32)
    return _Decoded(_rows(codes), scales.reshape(len(b), -1), None, _half(b, 208))


_DECODERS: Mapping[str, Callable[[Bytes], _Decoded]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "IQ4_NL": _iq4_nl, "Q4_K": _q4_k,
    "Q5_K": _q5_k, "IQ4_XS": _iq4_xs, "Q2_K": _q2_k, "Q3_K": _q3_k, "Q6_K": _q6_k,
}  # fmt: skip


def decode(kind: str, raw: Bytes, shape: tuple[int, int], num_threads: int) -> QuantizedMatrix:
    """A matrix [N, K] of a quantised type, in its format of EXACT_HEAD. Scales that aren't finite stay so."""
    block, block_bytes = BLOCK_TYPES[kind]
    blocks = raw.reshape(shape[0], shape[1] // block, block_bytes)
    step = max(1, CHUNK_BYTES // (blocks.shape[1] * block_bytes))
    pieces = [slice(first, first + step) for first in range(0, shape[0], step)]
    codes: Int8 = np.empty(shape, np.int8)

    def split(rows: slice) -> _Decoded:
        decoded = _DECODERS[kind](blocks[rows])
        codes[rows] = decoded.codes.view(np.int8)
        return decoded

    parts = _each(split, pieces, num_threads)

    def joined(name: str) -> Float32 | None:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    scales = joined("scales")
    assert scales is not None
    return QuantizedMatrix(
        EXACT_HEAD[kind], codes, scales, minima=joined("minima"), block_scales=joined("block_scales"),
        block_minima=joined("block_minima"),
    )  # fmt: skip


def _each(work: Callable[[slice], object], pieces: list[slice], num_threads: int) -> list:  # type: ignore[type-arg]
    """Of each piece; NumPy lets threads run side by side."""
    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(work, pieces))
