"""The GGUF container: a header that is checked before it is believed, and memory-mapped tensors.

Knows nothing of models. Versions 2 and 3, little endian. The format: github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwench.checkpoint.gguf.block_types import BLOCK_TYPES, TYPE_NAMES, UNREAD_NAMES
from qwench.checkpoint.lfs_pointer import why_unreadable
from qwench.errors import CheckpointError

Bytes = npt.NDArray[np.uint8]

SUFFIX, MAGIC, VERSIONS = ".gguf", b"GGUF", (2, 3)
ALIGNMENT_KEY = "general.alignment"
LARGEST_SIZE = 2**31 - 1  # of a dimension
LARGEST_ALIGNMENT = 1 << 20
STRING, ARRAY = 8, 9
SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies. type: ggml's name, such as Q4_K. shape: as NumPy says it, rows first."""

    name: str
    type: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int

    def matrices(self) -> list[GgufTensor]:
        """Of a stack [experts, N, K], its matrices."""
        size = self.num_bytes // self.shape[0]
        return [
            GgufTensor(self.name, self.type, self.shape[1:], self.start + i * size, size) for i in range(self.shape[0])
        ]


class GgufFile:
    """A memory-mapped GGUF file. metadata: key -> int, float, bool, str, an array of one of the first three, or a list
    of str. Raises CheckpointError if the header doesn't hold together, or a tensor isn't all there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                num_bytes = os.fstat(file.fileno()).st_size
                if num_bytes == 0:
                    raise CheckpointError(f"{path} is empty")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CheckpointError(f"{path} can't be read: {error.strerror}") from None
        reader = _Reader(path, self._map)
        self.metadata, self.tensors = reader.read()

    def raw(self, tensor: GgufTensor) -> Bytes:
        """The bytes of one tensor: a read-only view [num_bytes] uint8 of the file, which it keeps mapped."""
        return np.frombuffer(self._map, np.uint8, tensor.num_bytes, tensor.start)

    def release(self, tensor: GgufTensor) -> None:
        """Gives the pages of one tensor back to the system; a later read fetches them again."""
        start = -(-tensor.start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (tensor.start + tensor.num_bytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, start, length)


def is_gguf(path: Path) -> bool:
    """Whether a path is that of a GGUF file, by its name or else by how it begins: Ollama's have no ending."""
    if not path.is_file() or path.suffix.lower() == SUFFIX:
        return path.is_file()
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


class _Reader:
    """Reads a header from its beginning; every count is held against the bytes that are left before it is used."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at = path, data, 0

    def read(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        magic = self._take(4)
        if magic != MAGIC:
            raise self._error(why_unreadable(self._path, f"it begins with {magic!r}, not {MAGIC!r}"))
        version = self._number("<I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            if swapped in VERSIONS:
                raise self._error("it is big endian; convert it to little endian (gguf_convert_endian.py)")
            raise self._error(f"it has version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} are read")
        num_tensors, num_keys = self._number("<Q"), self._number("<Q")
        self._check_count(num_tensors, 8 + 4 + 4 + 8, "tensors")  # each takes at least so many bytes
        self._check_count(num_keys, 8 + 4 + 1, "keys")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string("a key")
            if key in metadata:
                raise self._error(f"it has the key {key!r} twice")
            metadata[key] = self._value(self._number("<I"), key)
        entries = [self._entry() for _ in range(num_tensors)]
        return metadata, self._placed(entries, metadata)

    def _placed(self, entries: list[GgufTensor], metadata: Mapping[str, Any]) -> dict[str, GgufTensor]:
        """The tensors with their place in the file, in its order; none may overlap another or the end."""
        alignment = metadata.get(ALIGNMENT_KEY, 32)
        if type(alignment) is not int or not 0 < alignment <= LARGEST_ALIGNMENT or alignment & (alignment - 1):
            raise self._error(f"{ALIGNMENT_KEY} is {alignment!r}; it must be a power of two")
        first = -(-self._at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        end, before = first, "the header"
        for entry in sorted(entries, key=lambda e: e.start):
            start = first + entry.start
            if entry.name in tensors:
                raise self._error(f"it has the tensor {entry.name!r} twice")
            if start % alignment:
                raise self._error(f"tensor {entry.name!r} isn't aligned to {alignment} bytes")
            if start < end:
                raise self._error(f"tensor {entry.name!r} overlaps {before}")
            end, before = start + entry.num_bytes, f"tensor {entry.name!r}"
            if end > len(self._data):
                raise self._error(
                    f"tensor {entry.name!r} ends at byte {end}, but the file has {len(self._data)}: it is truncated, "
                    "download it again"
                )
            tensors[entry.name] = GgufTensor(entry.name, entry.type, entry.shape, start, entry.num_bytes)
        return tensors

    def _entry(self) -> GgufTensor:
        """One tensor's; `start` is from where the tensors begin."""
        name = self._string("the name of a tensor")
        num_dims = self._number("<I")
        if not 1 <= num_dims <= 4:
            raise self._error(f"tensor {name!r} has {num_dims} dimensions")
        dims = struct.unpack(f"<{num_dims}Q", self._take(8 * num_dims))
        if not all(1 <= size <= LARGEST_SIZE for size in dims):
            raise self._error(f"tensor {name!r} has the impossible shape {list(dims)}")
        number, start = self._number("<I"), self._number("<Q")
        kind = TYPE_NAMES.get(number)
        if kind is None:
            told = UNREAD_NAMES.get(number, f"of ggml type {number}")
            raise self._error(f"tensor {name!r} is {told}; read are {', '.join(BLOCK_TYPES)}")
        block, block_bytes = BLOCK_TYPES[kind]
        if dims[0] % block:
            raise self._error(f"tensor {name!r} has rows of {dims[0]} values, no whole blocks of {kind}'s {block}")
        return GgufTensor(name, kind, tuple(reversed(dims)), start, math.prod(dims) // block * block_bytes)

    def _value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self._string(key)
        if kind != ARRAY:
            return self._scalars(kind, 1, key)[0].item()
        item, count = self._number("<I"), self._number("<Q")
        if item == ARRAY:
            raise self._error(f"{key} is an array of arrays")
        if item != STRING:
            return self._scalars(item, count, key)
        self._check_count(count, 8, f"strings in {key}")
        return [self._string(key) for _ in range(count)]

    def _scalars(self, kind: int, count: int, key: str) -> npt.NDArray[Any]:
        if kind not in SCALARS:
            raise self._error(f"{key} is of the unknown type {kind}")
        dtype = np.dtype(SCALARS[kind])
        self._check_count(count, dtype.itemsize, f"values in {key}")
        raw = self._take(count * dtype.itemsize)
        return np.frombuffer(raw, np.uint8) != 0 if kind == 7 else np.frombuffer(raw, dtype)

    def _string(self, what: str) -> str:
        size = self._number("<Q")
        self._check_count(size, 1, f"bytes in {what}")
        try:
            return self._take(size).decode("utf-8")
        except UnicodeDecodeError:
            raise self._error(f"{what} isn't UTF-8") from None

    def _number(self, layout: str) -> int:
        return int(struct.unpack(layout, self._take(struct.calcsize(layout)))[0])

    def _check_count(self, count: int, item_bytes: int, what: str) -> None:
        left = len(self._data) - self._at
        if count * item_bytes > left:
            raise self._error(f"it claims {count} {what}, but {left} bytes are left: it is truncated or damaged")

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise self._error(f"it ends within its header, at byte {len(self._data)}: it is truncated")
        self._at += size
        return self._data[self._at - size : self._at]

    def _error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self._path} can't be used: {message}")
