"""A Checkpoint with an adapter merged into it, matrix by matrix as they are read. Made by the compiler."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwench.checkpoint.checkpoint import Checkpoint, StoredTensor, as_floats
from qwench.checkpoint.spec import EMBEDDING, HEAD
from qwench.errors import CheckpointError
from qwench.formats import BF16
from qwench.lora.adapter import LoraAdapter
from qwench.quantized_matrix import QuantizedMatrix


class MergedCheckpoint:
    """`base` with W + scale * B A, in fp32, where the adapter has a pair. Raises CheckpointError for an adapter of the
    embedding or the head alone where the model has one matrix for both."""

    def __init__(self, base: Checkpoint, adapter: LoraAdapter) -> None:
        self._base, self._adapter = base, adapter
        self.path, self.spec = base.path, base.spec
        if self.spec.tie_word_embeddings and {EMBEDDING, HEAD} & set(adapter.pairs):
            raise CheckpointError(
                "the adapter changes the embedding or the head, which are one matrix in this model and would both "
                "change; keep the adapter apart (--lora of run and serve), or merge it with PEFT"
            )

    @property
    def is_quantized(self) -> bool:
        return self._base.is_quantized

    def texts(self) -> Mapping[str, bytes]:
        return self._base.texts()

    def check(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
        self._base.check(wanted)

    def stored(self, name: str) -> StoredTensor:
        stored = self._base.stored(name)
        return StoredTensor(f"{stored.kind} with LoRA", BF16, False) if name in self._adapter.pairs else stored

    def read(self, name: str) -> npt.NDArray[Any] | QuantizedMatrix:
        values, pair = self._base.read(name), self._adapter.pairs.get(name)
        return values if pair is None else as_floats(values).astype(np.float32) + pair.delta()

    def crcs(self, name: str) -> dict[str, int]:
        return self._base.crcs(name)

    def release(self, name: str) -> None:
        self._base.release(name)

    def files(self) -> list[Path]:
        return self._base.files()

    def content_digest(
        self, crcs: Mapping[str, int] | None = None, report: Callable[[int, int], None] | None = None
    ) -> str:
        base = self._base.content_digest(crcs, report)
        return hashlib.sha256(f"{base} {self._adapter.digest}".encode()).hexdigest()
