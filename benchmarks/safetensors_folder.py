"""A checkpoint's tensors as raw bytes, one after the other, with NumPy alone: peers' environments may lack more.

Trusts its files, unlike qwench's own reader: a benchmark reads what its user gave it. Called by the contenders.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RawTensor:
    """dtype: as safetensors names it ("BF16"). raw: [num_bytes] uint8, a view of the mapped file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    raw: npt.NDArray[np.uint8]

    def as_fp32(self) -> npt.NDArray[np.float32]:
        """[num_values] of a BF16, F16 or F32 tensor."""
        if self.dtype == "BF16":
            return (self.raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return self.raw.view({"F16": np.float16, "F32": np.float32}[self.dtype]).astype(np.float32)


def read_tensors(folder: Path) -> Iterator[RawTensor]:
    """Every tensor of the *.safetensors files in `folder`. Raises FileNotFoundError if there is no such file."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no .safetensors file")
    for path in paths:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(header_bytes))
        header.pop("__metadata__", None)
        data = np.memmap(path, np.uint8, "r", offset=8 + header_bytes)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            yield RawTensor(name, entry["dtype"], tuple(entry["shape"]), data[begin:end])
