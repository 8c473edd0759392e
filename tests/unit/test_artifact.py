"""Opening an artifact: sound ones open, and every kind of damage is an ArtifactError that says what to do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from tiny_checkpoint import write_checkpoint

from qwench.artifact.artifact import MANIFEST, PROGRAM, WEIGHTS, Conversion, Manifest, is_artifact, open_artifact
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.errors import ArtifactError
from qwench.targets.cpu._native import crc32c

CONFIG = QwenchConfig(target="reference", weights="int4", group_size=32, prefill_chunk_size=64)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    compile_checkpoint(write_checkpoint(folder / "checkpoint"), folder / "compiled", CONFIG)
    return folder / "compiled"


@pytest.fixture
def copy(compiled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compiled, tmp_path / "copy"))


def resign(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the manifest and makes its hash right again, as somebody who means harm would."""
    data = json.loads((folder / MANIFEST).read_text())
    edit(data)
    data["manifest_sha256"] = "0" * 64
    text = json.dumps(data)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST).write_text(text.replace("0" * 64, digest, 1))


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Changes a file and its record in the manifest."""
    (folder / name).write_bytes(content)
    crc = crc32c(np.frombuffer(content, np.uint8), 1)
    record = {"sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content), "crc32c": crc}
    resign(folder, lambda data: data["files"].update({name: record}))


def test_opens_with_everything(compiled: Path) -> None:
    for verify in ("fast", "full"):
        artifact = open_artifact(compiled, verify=verify)  # type: ignore[arg-type]
        assert artifact.get_target().name == "reference"
        assert artifact.config.weights == "int4" and artifact.config.head_weights == "int8"
        assert artifact.plan.max_step_tokens == 64
        assert artifact.program.spec.num_layers == 2
        assert all(t.dtype == np.uint8 and not t.flags.writeable for t in artifact.tensors.values())
        assert all(t.ctypes.data % 64 == 0 for t in artifact.tensors.values())
    assert {p.name for p in compiled.iterdir()} == {
        MANIFEST, PROGRAM, WEIGHTS, "config.json", "generation_config.json", "tokenizer.json",
    }  # fmt: skip
    with safe_open(compiled / WEIGHTS, "np") as theirs:
        assert set(theirs.keys()) == set(artifact.tensors)


def test_manifest_survives_json() -> None:
    manifest = Manifest(
        "1",
        "now",
        "name",
        "d1",
        {"weights": "bf16"},
        "layout",
        {PROGRAM: _record(), WEIGHTS: _record()},
        {},
        {"w": Conversion("Q6_K", 0.005)},
    )
    assert Manifest.from_json(manifest.to_json().encode()) == manifest


def _record() -> Any:
    from qwench.artifact.artifact import FileRecord

    return FileRecord("ab", 3, 4)


@pytest.mark.parametrize("name", [MANIFEST, PROGRAM, "config.json", "tokenizer.json"])
def test_every_flipped_bit_of_small_files(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    rng = np.random.default_rng(0)
    for bit in [0, len(content) * 8 - 1, *rng.integers(0, len(content) * 8, 60)]:
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        (copy / name).write_bytes(changed)
        with pytest.raises(ArtifactError, match="compile it again: qwench compile"):
            open_artifact(copy)


def test_full_verification_finds_what_the_checksum_does_not(copy: Path) -> None:
    """Somebody changed a file and its crc32c, but not its sha256."""
    name = "generation_config.json"
    sha256 = json.loads((copy / MANIFEST).read_text())["files"][name]["sha256"]
    replace_file(copy, name, (copy / name).read_bytes().swapcase())
    resign(copy, lambda data: data["files"][name].update(sha256=sha256))
    open_artifact(copy)
    with pytest.raises(ArtifactError, match=f"{name} was changed: its sha256 differs"):
        open_artifact(copy, verify="full")


def test_every_tensor_is_checked_for_a_flipped_bit(copy: Path) -> None:
    path = copy / WEIGHTS
    content = path.read_bytes()
    data_start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:data_start])
    for name, entry in header.items():
        changed = bytearray(content)
        changed[data_start + entry["data_offsets"][0] + entry["data_offsets"][1] % 64] ^= 4
        path.write_bytes(changed)
        with pytest.raises(ArtifactError, match=f"tensor '{name}' in weights.safetensors is damaged"):
            open_artifact(copy)


def test_a_flipped_bit_in_the_weights_header(copy: Path) -> None:
    path = copy / WEIGHTS
    content = path.read_bytes()
    for at in range(0, 8 + int.from_bytes(content[:8], "little"), 37):
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ArtifactError):
            open_artifact(copy, verify="full")


@pytest.mark.parametrize("name", [MANIFEST, PROGRAM, WEIGHTS, "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "longer", "empty", "folder"])
def test_damaged_files_are_named(copy: Path, name: str, damage: str) -> None:
    path = copy / name
    content = path.read_bytes()
    if damage == "longer":
        path.write_bytes(content + b" ")
    elif damage in ("truncated", "empty"):
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    else:
        path.unlink()
        if damage == "folder":
            path.mkdir()
    with pytest.raises(ArtifactError, match=f"{name}.*compile it again"):
        open_artifact(copy)
    assert is_artifact(copy)  # still recognised, so that it can be replaced


@pytest.mark.parametrize("version", [0, 3, None, "4"])
def test_other_schema_version(copy: Path, version: Any) -> None:
    resign(copy, lambda data: data.update(schema_version=version))
    with pytest.raises(
        ArtifactError, match=f"schema version {version!r}; this qwench reads version 7; compile it again"
    ):
        open_artifact(copy)


def test_other_layout(copy: Path) -> None:
    resign(copy, lambda data: data.update(layout="reference-v0"))
    artifact = open_artifact(copy)  # `qwench inspect` may still look at it
    with pytest.raises(ArtifactError, match=r"packed as 'reference-v0'; target 'reference' .* reads 'reference-v3'"):
        artifact.get_target()


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "", "..", ".hidden", MANIFEST, "a\0b"])
def test_paths_in_the_manifest_stay_in_the_folder(copy: Path, name: str) -> None:
    resign(copy, lambda data: data["files"].update({name: {"sha256": "00", "num_bytes": 0, "crc32c": 0}}))
    with pytest.raises(ArtifactError, match="can't be part of an artifact"):
        open_artifact(copy)


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data.pop("files"),
        lambda data: data.update(files=[1]),
        lambda data: data.update(files={}),
        lambda data: data.update(surprise=1),
        lambda data: data.update(created=5),
        lambda data: data.update(config=None),
        lambda data: data["files"][PROGRAM].update(num_bytes="9"),
        lambda data: data["files"][PROGRAM].update(crc32c=None),
        lambda data: data["config"].update(weights="int3"),
        lambda data: data["config"].update(surprise=1),
        lambda data: data["config"].update(prefill_chunk_size=None),
        lambda data: data["crc32c"].popitem(),
        lambda data: data.update(format="something"),
        lambda data: data.pop("crc32c"),
    ],
)
def test_manifests_with_impossible_fields(copy: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    resign(copy, edit)
    with pytest.raises(ArtifactError):
        open_artifact(copy)


def shift_arena(data: dict[str, Any]) -> None:
    data["memory_plan"]["offsets"]["embed"] = 1 << 40


def widen(data: dict[str, Any]) -> None:
    data["program"]["buffers"][0]["width"] = 1 << 20


def wrong_layer(data: dict[str, Any]) -> None:
    next(op for op in data["program"]["ops"] if op["kind"] == "attention")["attrs"]["layer"] = 99


def drop_op(data: dict[str, Any]) -> None:
    del data["program"]["ops"][3]


def small_arena(data: dict[str, Any]) -> None:
    data["memory_plan"]["arena_bytes"] = 0


def no_spec(data: dict[str, Any]) -> None:
    data["program"]["spec"] = {"vocab_size": 3}


def other_vocabulary(data: dict[str, Any]) -> None:
    data["program"]["spec"]["vocab_size"] = 100_000


@pytest.mark.parametrize("edit", [shift_arena, widen, wrong_layer, drop_op, small_arena, no_spec, other_vocabulary])
def test_a_forged_program_never_reaches_the_executor(copy: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Right hashes, wrong content: the native code would write where the plan says."""
    data = json.loads((copy / PROGRAM).read_text())
    edit(data)
    replace_file(copy, PROGRAM, json.dumps(data).encode())
    with pytest.raises(ArtifactError, match=PROGRAM):
        open_artifact(copy)


@pytest.mark.parametrize("content", [b"[]", b"{}", b"7", b'{"program": 3}', b"\xff", b"[" * 100_000])
def test_a_program_that_is_none(copy: Path, content: bytes) -> None:
    replace_file(copy, PROGRAM, content)
    with pytest.raises(ArtifactError, match=PROGRAM):
        open_artifact(copy)


def test_weights_of_another_model(copy: Path) -> None:
    artifact = open_artifact(copy)
    name, tensor = next((n, t) for n, t in artifact.tensors.items() if t.nbytes > 64)
    smaller = dataclasses.replace(artifact, tensors={**artifact.tensors, name: tensor[:-64]})
    with pytest.raises(ArtifactError, match="doesn't hold the tensors"):
        smaller.get_target()


def test_not_artifacts(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a folder"):
        open_artifact(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match=f"{MANIFEST} is missing"):
        open_artifact(tmp_path)
    assert not is_artifact(tmp_path) and not is_artifact(tmp_path / "nothing")
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    assert not is_artifact(checkpoint)
    with pytest.raises(ArtifactError, match=f"is a checkpoint.*: qwench compile {checkpoint} -o ARTIFACT$"):
        open_artifact(checkpoint)
