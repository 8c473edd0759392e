"""The safetensors container: a header that is checked before it is believed, memory-mapped reads, streamed writes.

Knows nothing of models: not which tensors there should be, nor what is in them. Read by `checkpoint/weights.py` and
`artifact/artifact.py`, written by `compiler/compiler.py`. Files stay readable by the safetensors library.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
MAX_HEADER_BYTES = 100_000_000  # as the safetensors library
ALIGNMENT = 64
PIECE_BYTES = 16 << 20  # hashed at once by one thread
MAX_PENDING = 2  # tensors that are being hashed and written while the next one is made
SYNC_BYTES = 128 << 20  # written between two flushes, so that the disk works while the next tensors are packed


class ContainerError(ValueError):
    """The file is not a sound safetensors file. The caller says what that means to the user."""


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: `start` is its first byte in the file; `dtype` is safetensors' name, such as BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


class SafetensorsFile:
    """A memory-mapped file whose header holds together: every byte belongs to exactly one tensor.

    Raises ContainerError from the constructor otherwise, OSError if the file can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            self.entries = parse_header(file, file_bytes)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def raw(self, name: str) -> Bytes:
        """The bytes of one tensor: a read-only view [num_bytes] uint8 of the file, which it keeps mapped."""
        entry = self.entries[name]
        return np.frombuffer(self._map, np.uint8, entry.num_bytes, entry.start)

    def header(self) -> memoryview:
        """The bytes before the first tensor."""
        return memoryview(self._map)[: min((entry.start for entry in self.entries.values()), default=len(self._map))]

    def release(self, name: str) -> None:
        """Gives the pages of one tensor back to the system; a later read fetches them again."""
        entry = self.entries[name]
        start = -(-entry.start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (entry.start + entry.num_bytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, start, length)


def parse_header(file: BinaryIO, file_bytes: int) -> dict[str, TensorEntry]:
    """Name -> entry in file order. Raises ContainerError, naming the tensor where it can."""
    prefix = file.read(8)
    if len(prefix) < 8:
        raise ContainerError(f"the file has {file_bytes} bytes, too few for a header: it is truncated")
    header_bytes = int.from_bytes(prefix, "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise ContainerError(f"its header claims {header_bytes} bytes; at most {MAX_HEADER_BYTES} are allowed")
    if 8 + header_bytes > file_bytes:
        raise ContainerError(f"its header claims {header_bytes} bytes, but the file has {file_bytes}: it is truncated")
    try:
        header = json.loads(file.read(header_bytes).decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ContainerError(f"its header is not valid JSON: {error}") from None
    if not isinstance(header, dict):
        raise ContainerError("its header is not a JSON object")
    header.pop("__metadata__", None)
    data_start = 8 + header_bytes
    entries = sorted((_entry(n, v, data_start) for n, v in header.items()), key=lambda e: (e.start, e.num_bytes))
    _check_cover(entries, data_start, file_bytes)
    return {entry.name: entry for entry in entries}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys appear once."""
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ContainerError(f"{next(n for n in names if names.count(n) > 1)!r} appears twice in the header")
    return result


def _entry(name: str, value: Any, data_start: int) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ContainerError(f"the header's entry for tensor {name!r} is malformed")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ContainerError(f"tensor {name!r} has the unknown dtype {dtype!r}")
    if not _is_counts(shape) or not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ContainerError(f"tensor {name!r} has an impossible shape or offsets: {shape!r}, {offsets!r}")
    num_bytes = DTYPE_BYTES[dtype]
    for size in shape:
        num_bytes *= size
    if offsets[1] - offsets[0] != num_bytes:
        raise ContainerError(
            f"tensor {name!r} of shape {shape} in {dtype} needs {num_bytes} bytes, but its offsets give it "
            f"{offsets[1] - offsets[0]}"
        )
    return TensorEntry(name, dtype, tuple(shape), data_start + offsets[0], num_bytes)


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_cover(entries: Sequence[TensorEntry], data_start: int, file_bytes: int) -> None:
    """Tensors follow each other without hole or overlap, and end where the file ends."""
    at, previous = data_start, "the header"
    for entry in entries:
        if entry.start > at:
            raise ContainerError(f"there is a hole of {entry.start - at} bytes before tensor {entry.name!r}")
        if entry.start < at:
            raise ContainerError(f"tensor {entry.name!r} overlaps {previous} by {at - entry.start} bytes")
        at, previous = entry.start + entry.num_bytes, f"tensor {entry.name!r}"
        if at > file_bytes:
            raise ContainerError(
                f"tensor {entry.name!r} ends at byte {at}, but the file has {file_bytes}: it is truncated"
            )
    if at != file_bytes:
        raise ContainerError(f"{file_bytes - at} bytes after {previous} belong to no tensor")


def build_header(tensors: Iterable[tuple[str, str, Sequence[int]]]) -> bytes:
    """Length prefix and header of a file that holds (name, dtype, shape) in this order, padded to 64 bytes."""
    header: dict[str, Any] = {}
    at = 0
    for name, dtype, shape in tensors:
        num_bytes = DTYPE_BYTES[dtype] * int(np.prod(shape, dtype=np.int64))
        assert name not in header and num_bytes % ALIGNMENT == 0, name
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + num_bytes]}
        at += num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _pieces(chunk: memoryview) -> Iterator[memoryview]:
    for at in range(0, len(chunk), PIECE_BYTES):
        yield chunk[at : at + PIECE_BYTES]


def _sha256(piece: memoryview) -> bytes:
    return hashlib.sha256(piece).digest()


def pieces_sha256(file: SafetensorsFile, num_threads: int) -> str:
    """sha256, as hex, over the sha256 of each piece of the file: the header, then each tensor in file order, what is
    larger than 16 MiB cut into pieces of that size. So any number of threads can share the work."""
    with ThreadPoolExecutor(num_threads) as pool:
        chunks = (file.header(), *(file.raw(name).data for name in file.entries))
        digests = pool.map(_sha256, (piece for chunk in chunks for piece in _pieces(chunk)))
        return hashlib.sha256(b"".join(digests)).hexdigest()


class SafetensorsWriter:
    """Writes a file whose tensors are known beforehand, one after the other, hashing it on the way.

    One thread writes and `num_threads` hash while the caller makes the next tensor; `write` waits while more than
    MAX_PENDING tensors are unfinished. Arrays given to `write` belong to the writer. Use as a context manager; what a
    thread raises, a later call raises.
    """

    def __init__(self, path: Path, tensors: Sequence[tuple[str, str, Sequence[int]]], num_threads: int = 1) -> None:
        self._expected = [name for name, _, _ in tensors]
        self._next = self._unsynced = 0
        self._file = path.open("xb", buffering=0)
        self._disk, self._hashers = ThreadPoolExecutor(1), ThreadPoolExecutor(num_threads)
        self._pending: deque[list[Future[Any]]] = deque()
        self._digests: list[Future[bytes]] = []
        self._put(memoryview(build_header(tensors)))

    def write(self, name: str, data: Bytes) -> None:
        """The bytes of the next tensor, in the order given to the constructor."""
        assert self._expected[self._next] == name, f"expected {self._expected[self._next]}, got {name}"
        self._next += 1
        self._put(data.data)
        self._wait(MAX_PENDING)

    def finish(self) -> str:
        """Waits until all is written, though perhaps not yet on disk; the file's `pieces_sha256`."""
        assert self._next == len(self._expected), "tensors are missing"
        self._wait(0)
        return hashlib.sha256(b"".join(digest.result() for digest in self._digests)).hexdigest()

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for pool in (self._disk, self._hashers):
            pool.shutdown(cancel_futures=True)
        self._file.close()

    def _put(self, chunk: memoryview) -> None:
        hashes = [self._hashers.submit(_sha256, piece) for piece in _pieces(chunk)]
        self._digests += hashes
        self._pending.append([self._disk.submit(self._write_all, chunk), *hashes])

    def _wait(self, num_pending: int) -> None:
        while len(self._pending) > num_pending:
            for future in self._pending.popleft():
                future.result()

    def _write_all(self, chunk: memoryview) -> None:
        at = 0
        while at < len(chunk):
            written = self._file.write(chunk[at : at + SYNC_BYTES]) or 0
            at += written
            self._unsynced += written
            if self._unsynced >= SYNC_BYTES:
                os.fsync(self._file.fileno())
                self._unsynced = 0
