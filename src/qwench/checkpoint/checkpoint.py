"""What the compiler needs of a checkpoint, whatever the files: its model, its texts, and its tensors one by one.

`weights.py` reads folders of safetensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qwench.checkpoint.spec import ModelSpec
from qwench.formats import Format
from qwench.quantized_matrix import QuantizedMatrix


@dataclass(frozen=True)
class StoredTensor:
    """How a checkpoint stores a tensor, and what it becomes if nobody asks for something else.

    kind: in the words of those who made the file: "BF16", "Q4_K", "GPTQ 4-bit".
    format: of the packed matrix. is_exact: whether that holds the very same values; then `read` gives a QuantizedMatrix
        of this format where it is one of integers. Otherwise `read` gives floats, to be rounded to `format`.
    order: of the inputs that the codes' columns belong to, as in QuantizedMatrix.
    """

    kind: str
    format: Format
    is_exact: bool
    order: npt.NDArray[np.int32] | None = None


def as_floats(tensor: npt.NDArray[Any] | QuantizedMatrix) -> npt.NDArray[Any]:
    """What `Checkpoint.read` gave, dequantised if it was quantised."""
    return tensor.dequantize() if isinstance(tensor, QuantizedMatrix) else tensor


def digest_of(
    texts: Mapping[str, bytes], tensors: Mapping[str, tuple[str, int]], read_crc: Callable[[str], int],
    crcs: Mapping[str, int] | None, report: Callable[[int, int], None] | None,
) -> str:  # fmt: skip
    """sha256 over the texts and, sorted by name, each tensor's name, kind, shape and crc32c. tensors: by name, kind and
    shape, and number of bytes. read_crc: of a tensor. crcs, report: as of `Checkpoint.content_digest`."""
    digest, done = hashlib.sha256(), 0
    for name, data in texts.items():
        digest.update(f"{name} {len(data)}\n".encode() + data)
    total = sum(num_bytes for _, num_bytes in tensors.values())
    for name, (kind, num_bytes) in sorted(tensors.items()):
        crc = crcs[name] if crcs and name in crcs else read_crc(name)
        digest.update(f"{name} {kind} {crc:08x}\n".encode())
        done += num_bytes
        if report is not None:
            report(done, total)
    return digest.hexdigest()


class Checkpoint(Protocol):
    """A checkpoint whose files were opened and checked, tensors not yet read. Names are those of transformers."""

    path: Path
    spec: ModelSpec

    @property
    def is_quantized(self) -> bool:
        """Whether its makers quantised it: then its matrices stay as they are unless the user says otherwise."""
        ...

    def texts(self) -> Mapping[str, bytes]:
        """Files for the artifact: config, tokenizer and generation files, by name."""
        ...

    def check(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """Compares names, shapes and types with what the model needs. Raises CheckpointError."""
        ...

    def stored(self, name: str) -> StoredTensor: ...

    def read(self, name: str) -> npt.NDArray[Any] | QuantizedMatrix:
        """A tensor as bfloat16, float16 or float32, or quantised as `stored` says.

        Raises CheckpointError if it holds NaN or infinite values.
        """
        ...

    def crcs(self, name: str) -> dict[str, int]:
        """crc32c of each of the stored tensors that `name` is made of, for `content_digest`."""
        ...

    def release(self, name: str) -> None:
        """Gives the pages of a tensor back to the system, after it was read."""
        ...

    def files(self) -> list[Path]:
        """Every file that `content_digest` depends on."""
        ...

    def content_digest(
        self, crcs: Mapping[str, int] | None = None, report: Callable[[int, int], None] | None = None
    ) -> str:
        """sha256 as hex over all that it holds. crcs: those already known; the others are read. report: told the bytes
        done and in all after each tensor."""
        ...
