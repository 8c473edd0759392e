"""The container: agreement with the safetensors library both ways, and every way a header can lie."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from qwench.safetensors_file import (
    ContainerError,
    SafetensorsFile,
    SafetensorsWriter,
    build_header,
    pieces_sha256,
)


def write_raw(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@settings(max_examples=30, deadline=None)
@given(shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=4), kind=st.sampled_from(["f4", "f2", "i8"]))
def test_reads_what_the_library_writes(tmp_path_factory: pytest.TempPathFactory, shapes: list[Any], kind: str) -> None:
    rng = np.random.default_rng(1)
    tensors = {f"t{i}": rng.integers(0, 99, shape).astype(kind) for i, shape in enumerate(shapes)}
    path = tmp_path_factory.mktemp("st") / "a.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    file = SafetensorsFile(path)
    assert set(file.entries) == set(tensors)
    for name, tensor in tensors.items():
        assert file.entries[name].shape == tensor.shape
        np.testing.assert_array_equal(file.raw(name).view(kind).reshape(tensor.shape), tensor)
        file.release(name)
        np.testing.assert_array_equal(file.raw(name).view(kind).reshape(tensor.shape), tensor)


def write(path: Path, tensors: dict[str, Any], num_threads: int = 1) -> str:
    """Writes bytes under their names; returns the digest."""
    with SafetensorsWriter(path, [(n, "U8", data.shape) for n, data in tensors.items()], num_threads) as writer:
        for name, data in tensors.items():
            writer.write(name, data)
        return writer.finish()


def test_the_digest_is_of_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwench.safetensors_file.PIECE_BYTES", 100)
    a, b = (np.random.default_rng(i).integers(0, 256, size).astype("u1") for i, size in enumerate((64, 256)))
    digests = [write(tmp_path / str(threads), {"a": a, "b": b}, threads) for threads in (1, 3)]
    whole = (tmp_path / "1").read_bytes()
    header = whole[: -64 - 256]
    cuts = (*(header[i : i + 100] for i in range(0, len(header), 100)), a, b[:100], b[100:200], b[200:])
    assert digests[0] == hashlib.sha256(b"".join(hashlib.sha256(cut).digest() for cut in cuts)).hexdigest()
    assert digests[1] == digests[0] == pieces_sha256(SafetensorsFile(tmp_path / "3"), 2)
    (tmp_path / "3").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert pieces_sha256(SafetensorsFile(tmp_path / "3"), 2) != digests[0]


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {
        f"weight.{i}": np.random.default_rng(i).integers(0, 256, 64 * (3 * i + 1)).astype("u1") for i in range(9)
    }
    write(path, tensors)
    loaded = load_file(path)
    assert set(loaded) == set(tensors)
    for name, data in tensors.items():
        np.testing.assert_array_equal(loaded[name], data)
    assert all(e.start % 64 == 0 for e in SafetensorsFile(path).entries.values())
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert sorted(tensors, key=lambda name: header[name]["data_offsets"]) == list(tensors)


@pytest.mark.parametrize("num_tensors", range(12))
def test_data_begins_on_a_cache_line(num_tensors: int) -> None:
    header = build_header([("x" * i, "F32", (16, i + 1)) for i in range(num_tensors)])
    assert len(header) % 64 == 0 and int.from_bytes(header[:8], "little") == len(header) - 8


F = [2, 2]  # a shape of 16 bytes in F32
LIES: dict[str, tuple[Any, int, str]] = {
    "no tensor for the data": ({}, 4, "belong to no tensor"),
    "truncated data": ({"a": entry("F32", F, 0, 16)}, 15, "'a' ends at byte"),
    "bytes after the last": ({"a": entry("F32", F, 0, 16)}, 17, "1 bytes after tensor 'a'"),
    "hole": ({"a": entry("F32", F, 0, 16), "b": entry("F32", F, 20, 36)}, 36, "hole of 4 bytes before tensor 'b'"),
    "hole at the start": ({"a": entry("F32", F, 4, 20)}, 20, "hole of 4 bytes before tensor 'a'"),
    "overlap": ({"a": entry("F32", F, 0, 16), "b": entry("F32", F, 8, 24)}, 24, "'b' overlaps tensor 'a' by 8"),
    "same place": ({"a": entry("F32", F, 0, 16), "b": entry("F32", F, 0, 16)}, 16, "'b' overlaps tensor 'a'"),
    "size": ({"a": entry("F32", F, 0, 12)}, 12, "'a' of shape"),
    "huge shape": ({"a": entry("F32", [2**62, 2**62], 0, 16)}, 16, "'a' of shape"),
    "negative": ({"a": entry("F32", [-2, -2], 0, 16)}, 16, "impossible shape"),
    "backwards": ({"a": entry("F32", F, 16, 0)}, 16, "impossible shape"),
    "fraction": ({"a": entry("F32", [2.0, 2], 0, 16)}, 16, "impossible shape"),
    "boolean": ({"a": entry("F32", [True, 4], 0, 16)}, 16, "impossible shape"),
    "dtype": ({"a": entry("F31", F, 0, 16)}, 16, "dtype 'F31'"),
    "fields": ({"a": {"dtype": "F32"}}, 16, "'a' is malformed"),
    "not an object": ([1], 0, "not a JSON object"),
    "not JSON": (b"{", 0, "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', 0, "not valid JSON"),
    "too deep": (b"[" * 200_000, 0, "not valid JSON"),
    "twice": (b'{"a": 1, "a": 2}', 0, "'a' appears twice"),
}


@pytest.mark.parametrize("lie", LIES)
def test_refuses(tmp_path: Path, lie: str) -> None:
    header, data_bytes, words = LIES[lie]
    path = write_raw(tmp_path / "a.safetensors", header, bytes(data_bytes))
    with pytest.raises(ContainerError) as caught:
        SafetensorsFile(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("claim", [100_000_001, 2**63, 2**64 - 1, 1000])
def test_refuses_a_header_that_is_too_long(tmp_path: Path, claim: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(claim.to_bytes(8, "little") + b"{}")
    with pytest.raises(ContainerError, match="header claims"):
        SafetensorsFile(path)


def test_refuses_every_truncation(tmp_path: Path) -> None:
    whole, path = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"a": np.arange(6, dtype="f4"), "b": np.arange(5, dtype="f4")}, whole)
    content = whole.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ContainerError):
            SafetensorsFile(path)


@settings(max_examples=300, deadline=None)
@given(bit=st.integers(0, 8 * 200 - 1))
def test_a_flipped_header_bit_never_escapes_the_file(tmp_path_factory: pytest.TempPathFactory, bit: int) -> None:
    path = tmp_path_factory.mktemp("st") / "a.safetensors"
    save_file({"a": np.arange(6, dtype="f4"), "b": np.arange(5, dtype="f2")}, path)
    content = bytearray(path.read_bytes())
    if bit // 8 >= len(content):
        return
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    try:
        file = SafetensorsFile(path)
    except ContainerError:
        return
    assert sum(file.raw(name).size for name in file.entries) <= len(content)


def test_a_full_disk_is_an_oserror_of_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.zeros(1 << 20, np.uint8)

    def no_space(self: SafetensorsWriter, chunk: memoryview) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SafetensorsWriter, "_write_all", no_space)

    def write() -> None:
        with SafetensorsWriter(tmp_path / "a", [(str(i), "U8", data.shape) for i in range(5)]) as writer:
            for i in range(5):
                writer.write(str(i), data)
            writer.finish()

    with pytest.raises(OSError, match="No space"):
        write()
