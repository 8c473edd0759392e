"""Pooling: the embedding of a prompt, which is the last of its hidden states after the final norm, or their mean.

Made by the engine for a request for an embedding; collects hidden states over the steps that compute the prompt.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from qwench.errors import NumericalError, RequestError
from qwench.targets.target import Float32

Pooling: TypeAlias = Literal["last", "mean"]
POOLINGS: tuple[Pooling, ...] = ("last", "mean")


class Pooler:
    """Takes the hidden states of a prompt of `num_tokens` in order. When a preempted prompt is computed again, only
    states that are still missing are taken."""

    def __init__(self, pooling: Pooling, num_tokens: int) -> None:
        if pooling not in POOLINGS:
            raise RequestError(f"pooling is {pooling!r}; there are: {', '.join(POOLINGS)}")
        self.pooling, self.num_tokens = pooling, num_tokens
        self._next = num_tokens - 1 if pooling == "last" else 0  # the first position that is still wanted
        self._sum: np.ndarray[tuple[int], np.dtype[np.float64]] | None = None

    def wanted(self, start: int, stop: int) -> range:
        """The positions from `start` to `stop` whose states `add` needs."""
        return range(max(start, self._next), max(stop, self._next))

    def add(self, states: Float32) -> None:
        """states: [n, hidden_size], those of the positions that were `wanted`."""
        self._next += len(states)
        total = states.sum(axis=0, dtype=np.float64)
        self._sum = total if self._sum is None else self._sum + total

    def result(self) -> Float32:
        """[hidden_size] fp32. Raises NumericalError if it isn't finite."""
        assert self._next == self.num_tokens and self._sum is not None
        count = 1 if self.pooling == "last" else self.num_tokens
        embedding: Float32 = (self._sum / count).astype(np.float32)
        if not np.isfinite(embedding).all():
            raise NumericalError("the model produced NaN or infinite hidden states; is the checkpoint sound?")
        return embedding
