"""LoraAdapter: what a low-rank adapter adds to the matrices of a model. W x becomes W x + scale * B (A x).

(Hu et al., LoRA, 2021.) Read by `peft_folder.py`, merged by `merged_checkpoint.py`, or kept apart by targets, which
lay it out for their kernels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class LoraPair:
    """The change of one matrix [N, K]. a: [rank, K], b: [N, rank], floats as the adapter's file has them."""

    a: npt.NDArray[Any]
    b: npt.NDArray[Any]
    scale: float

    @property
    def rank(self) -> int:
        return len(self.a)

    def delta(self) -> npt.NDArray[np.float32]:
        """[N, K] fp32: what is added to the matrix when the two are merged."""
        product: npt.NDArray[np.float32] = self.b.astype(np.float32) @ self.a.astype(np.float32)
        return product * np.float32(self.scale)


@dataclass(frozen=True)
class LoraAdapter:
    """pairs: by the matrix's name in the checkpoint, such as model.layers.0.mlp.down_proj.weight."""

    pairs: Mapping[str, LoraPair]

    @cached_property
    def digest(self) -> str:
        """sha256 as hex of all that keys, values and logits depend on."""
        digest = hashlib.sha256()
        for name, pair in sorted(self.pairs.items()):
            digest.update(f"{name} {pair.scale!r} {pair.a.dtype} {pair.a.shape} {pair.b.shape}\n".encode())
            for matrix in (pair.a, pair.b):
                digest.update(np.ascontiguousarray(matrix).view(np.uint8).data)
        return digest.hexdigest()

    @property
    def max_rank(self) -> int:
        return max(pair.rank for pair in self.pairs.values())

    @property
    def num_bytes(self) -> int:
        """What it takes beside a running model, in bf16."""
        return sum(2 * (pair.a.size + pair.b.size) for pair in self.pairs.values())
