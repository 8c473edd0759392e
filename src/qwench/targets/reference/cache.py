"""What the KV cache keeps of keys and values, in NumPy: all of them, rounded to bf16, or codes of 16 or 8 bits.

Knows slots and positions, nothing of blocks or sequences. Made by the reference executor, read and written by its ops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from qwench.checkpoint.spec import ModelSpec
from qwench.formats import LARGEST_CODE, largest_word, quantize_activation
from qwench.program.rope import cos_sin, inverse_frequencies

Float32 = npt.NDArray[np.float32]
Int = npt.NDArray[np.int64]

SCORE_TILE = 64  # positions whose products with int16 probabilities are summed as integers


def rotate(x: Float32, table: Float32) -> Float32:
    """RoPE. x: [tokens, heads, head_dim]; table: [tokens, head_dim], cosines in the first half, sines in the second."""
    half = x.shape[2] // 2
    cos, sin = table[:, None, :half], table[:, None, half:]
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=2)


class Cache(Protocol):
    """Rotated keys and values of one layer, fp32 [tokens, num_kv_heads, head_dim], by slot and position."""

    def write(self, slots: Int, positions: Int, k: Float32, v: Float32) -> None: ...

    def read(self, slots: Int, positions: Int) -> tuple[Float32, Float32]: ...

    def arrays(self) -> list[npt.NDArray[Any]]:
        """All that it keeps, each indexed by slot."""
        ...


class PlainCache:
    """Values as they are, in fp32 or bf16."""

    def __init__(self, shape: tuple[int, int, int], dtype: npt.DTypeLike) -> None:
        self._keys, self._values = np.zeros(shape, dtype), np.zeros(shape, dtype)

    def write(self, slots: Int, positions: Int, k: Float32, v: Float32) -> None:
        self._keys[slots], self._values[slots] = k.astype(self._keys.dtype), v.astype(self._values.dtype)

    def read(self, slots: Int, positions: Int) -> tuple[Float32, Float32]:
        return self._keys[slots].astype(np.float32), self._values[slots].astype(np.float32)

    def arrays(self) -> list[npt.NDArray[Any]]:
        return [self._keys, self._values]


class CodeCache:
    """Codes of a kind, int16 or int8, with a scale per position and head; keys less their rotated bias.

    largest: of the keys' codes, and of the values'. key_bias: [num_kv_heads, head_dim] fp32. Qwen2's is many times as
    large as what varies beside it, so with it codes of 8 bits would have few steps left for the rest.
    """

    def __init__(
        self, shape: tuple[int, int, int], kind: str, largest: tuple[int, int], spec: ModelSpec, key_bias: Float32
    ) -> None:
        self._kind, self._largest = kind, largest
        self._codes = [np.zeros(shape, kind) for _ in range(2)]
        self._scales = [np.zeros((*shape[:2], 1), np.float32) for _ in range(2)]
        self._rope = inverse_frequencies(spec.rope, spec.head_dim)
        self._key_bias = key_bias.reshape(1, *shape[1:])

    def _bias_at(self, positions: Int) -> Float32:
        table = cos_sin(*self._rope, 0, int(positions.max()) + 1)[positions]
        return rotate(np.repeat(self._key_bias, len(positions), axis=0), table)

    def write(self, slots: Int, positions: Int, k: Float32, v: Float32) -> None:
        kept = (k - self._bias_at(positions), v)
        for codes, scales, x, largest in zip(self._codes, self._scales, kept, self._largest, strict=True):
            head_dim = x.shape[2]
            new_codes, new_scales = quantize_activation(x.reshape(-1, head_dim), head_dim, self._kind, largest)
            codes[slots], scales[slots] = new_codes.reshape(x.shape), new_scales.reshape(*x.shape[:2], 1)

    def read(self, slots: Int, positions: Int) -> tuple[Float32, Float32]:
        k, v = (codes[slots] * scales[slots] for codes, scales in zip(self._codes, self._scales, strict=True))
        return k + self._bias_at(positions), v

    def arrays(self) -> list[npt.NDArray[Any]]:
        return [*self._codes, *self._scales]


def make_caches(num_slots: int, dtype: str, spec: ModelSpec, key_biases: Sequence[Float32]) -> list[Cache]:
    """One a layer; `dtype` as of CacheConfig, `key_biases` a layer's [num_kv_heads * head_dim]."""
    shape = (num_slots, spec.num_kv_heads, spec.head_dim)
    if dtype == "int8":
        largest = LARGEST_CODE["int8"]
        return [CodeCache(shape, dtype, (largest, largest), spec, bias) for bias in key_biases]
    if dtype == "int16":
        words = largest_word(-(-spec.head_dim // 16) * 16), largest_word(SCORE_TILE)
        return [CodeCache(shape, dtype, words, spec, np.zeros_like(bias)) for bias in key_biases]
    plain: dict[str, Any] = {"fp32": np.float32, "bf16": ml_dtypes.bfloat16}
    return [PlainCache(shape, plain[dtype]) for _ in range(spec.num_layers)]
