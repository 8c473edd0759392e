"""Pooling: what a request for an embedding or for scores gets of the rows that a step computes for its prompt.

Made by the engine for such a request; collects rows over the steps that compute the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from qwench.errors import NumericalError, RequestError
from qwench.targets.target import Float32

Source: TypeAlias = Literal["hidden", "scores"]  # hidden states after the final norm, or a classification head's output
Pooling: TypeAlias = Literal["last", "mean", "first", "all"]
POOLINGS: tuple[Pooling, ...] = ("last", "mean", "first", "all")


@dataclass(frozen=True)
class PoolingParams:
    """What is asked for. pooling: of the last token or the first, the mean of all, or each token's."""

    pooling: Pooling = "last"
    source: Source = "hidden"

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise RequestError(f"pooling is {self.pooling!r}; there are: {', '.join(POOLINGS)}")

    @property
    def reads_all(self) -> bool:
        return self.pooling in ("mean", "all")


class Pooler:
    """Takes the rows of a prompt of `num_tokens` in order. When a preempted prompt is computed again, only rows that
    are still missing are taken."""

    def __init__(self, params: PoolingParams, num_tokens: int) -> None:
        self.params = params
        self._next = num_tokens - 1 if params.pooling == "last" else 0  # the first position that is still wanted
        self._end = 1 if params.pooling == "first" else num_tokens
        self._sum: np.ndarray[tuple[int], np.dtype[np.float64]] | None = None
        self._rows: list[Float32] = []

    def wanted(self, start: int, stop: int) -> range:
        """The positions from `start` to `stop` whose rows `add` needs."""
        return range(max(start, self._next), max(min(stop, self._end), self._next))

    def add(self, rows: Float32) -> None:
        """rows: [n, width], those of the positions that were `wanted`."""
        if not len(rows):
            return
        self._next += len(rows)
        if self.params.pooling == "mean":
            total = rows.sum(axis=0, dtype=np.float64)
            self._sum = total if self._sum is None else self._sum + total
        else:
            self._rows.append(rows.copy())

    def result(self) -> Float32:
        """[width] fp32, or [num_tokens, width] of all. Raises NumericalError if it isn't finite."""
        assert self._next == self._end
        pooled: Float32
        if self._sum is not None:
            pooled = (self._sum / self._end).astype(np.float32)
        else:
            pooled = np.concatenate(self._rows) if self.params.pooling == "all" else self._rows[0][0]
        if not np.isfinite(pooled).all():
            raise NumericalError("the model produced NaN or infinite numbers; is the checkpoint sound?")
        return pooled
