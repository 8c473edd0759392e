"""The artifact: a folder with a manifest, a Program, packed weights and the checkpoint's tokenizer files.

Defines the format of the folder, and verifies an artifact before use. Nothing in it is executable: JSON and
safetensors only. `compiler/compiler.py` writes artifacts; `load.py`, `qwench inspect` and `qwench verify` open them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from qwench.checkpoint.spec import ModelSpec
from qwench.checkpoint.tokenizer_tables import has_tokenizer_of_tables
from qwench.config import QwenchConfig
from qwench.errors import ArtifactError, CheckpointError
from qwench.formats import Format
from qwench.host import num_cpus
from qwench.program.memory import MemoryPlan, plan_memory
from qwench.program.models import build_program
from qwench.program.ops import Program, Weight
from qwench.program.passes import fuse, set_formats, set_orders
from qwench.safetensors_file import ContainerError, SafetensorsFile, pieces_sha256
from qwench.targets.cpu._native import crc32c
from qwench.targets.registry import get_target
from qwench.targets.target import Target

logger = logging.getLogger(__name__)

FORMAT_NAME = "qwench-artifact"
SCHEMA_VERSION = 7
MANIFEST, PROGRAM, WEIGHTS = "manifest.json", "program.json", "weights.safetensors"
OWN_FILES = (MANIFEST, PROGRAM, WEIGHTS)
# Users may edit these after compiling, and `tokenizer.save_pretrained` rewrites them.
TEXTS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip
_NO_HASH = "0" * 64  # in the place of the manifest's own sha256, while that is computed
_AGAIN = "compile it again: qwench compile CHECKPOINT -o {path} --overwrite"


@dataclass(frozen=True)
class FileRecord:
    """What one file of the artifact must be: sha256 as hex, size, and crc32c. For the weights the sha256 is
    `pieces_sha256`, and crc32c is None, because each tensor has its own."""

    sha256: str
    num_bytes: int
    crc32c: int | None = None


@dataclass(frozen=True)
class Conversion:
    """How a matrix lay in its checkpoint, and ||w - packed|| / ||w|| over a sample of its rows: 0 if it is exact."""

    stored: str
    relative_error: float


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says. `config` is resolved; `crc32c` has the native checksum of each packed tensor;
    `conversions` has the matrices that nobody asked to be quantised: whether they are as their checkpoint has them."""

    qwench_version: str
    created: str
    source_name: str
    source_digest: str
    config: dict[str, Any]
    layout: str
    files: dict[str, FileRecord]
    crc32c: dict[str, int]
    conversions: dict[str, Conversion]

    def to_json(self) -> str:
        """The text of manifest.json, with its own sha256 (taken with zeros in that place) in it."""
        data = {"format": FORMAT_NAME, "schema_version": SCHEMA_VERSION, "manifest_sha256": _NO_HASH}
        text = json.dumps(data | dataclasses.asdict(self), indent=1) + "\n"
        return text.replace(_NO_HASH, hashlib.sha256(text.encode()).hexdigest(), 1)

    @classmethod
    def from_json(cls, raw: bytes) -> Manifest:
        """Inverse of `to_json`. Raises ValueError with the reason if it is not a sound manifest of this version."""
        try:
            data = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"it is not valid JSON ({error})") from None
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT_NAME:
            raise ValueError("it is not the manifest of a qwench artifact")
        if (version := data.pop("schema_version", None)) != SCHEMA_VERSION:
            raise ValueError(f"it has schema version {version!r}; this qwench reads version {SCHEMA_VERSION}")
        stated = data.pop("manifest_sha256", None)
        if not isinstance(stated, str) or len(stated) != 64:
            raise ValueError("it lacks its own sha256")
        if hashlib.sha256(raw.replace(stated.encode(), _NO_HASH.encode(), 1)).hexdigest() != stated:
            raise ValueError("its bytes were changed: its sha256 differs")
        try:
            files = {name: FileRecord(**record) for name, record in data.pop("files").items()}
            conversions = {name: Conversion(**told) for name, told in data.pop("conversions").items()}
            manifest = cls(files=files, conversions=conversions, **data)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"a field is missing or unknown ({error})") from None
        manifest._check_fields()
        return manifest

    def _check_fields(self) -> None:
        texts = (self.qwench_version, self.created, self.source_name, self.source_digest, self.layout)
        sound = (
            all(isinstance(text, str) for text in texts)
            and isinstance(self.config, dict)
            and isinstance(self.crc32c, dict)
            and all(type(r.num_bytes) is int and isinstance(r.sha256, str) for r in self.files.values())
            and all(isinstance(c.stored, str) and type(c.relative_error) is float for c in self.conversions.values())
            and all(type(r.crc32c) is int for name, r in self.files.items() if name != WEIGHTS)
        )
        if not sound:
            raise ValueError("a field has the wrong type")
        for name in self.files:
            if not name or name == MANIFEST or name.startswith(".") or set(name) & set("/\\\0"):
                raise ValueError(f"it names the file {name!r}, which can't be part of an artifact")
        if absent := [name for name in (PROGRAM, WEIGHTS) if name not in self.files]:
            raise ValueError(f"it doesn't list {absent[0]}")


@dataclass(frozen=True)
class Artifact:
    """An opened and verified artifact. `tensors`: name -> [num_bytes] uint8, read-only views of the mapped file."""

    path: Path
    manifest: Manifest
    config: QwenchConfig
    program: Program
    plan: MemoryPlan
    tensors: dict[str, npt.NDArray[np.uint8]]

    @property
    def weights_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def get_target(self) -> Target:
        """The target it runs on, which reads this layout.

        Raises TargetError if this machine can't run it, ArtifactError if it reads another layout.
        """
        assert self.config.target is not None
        target = get_target(self.config.target)
        if target.layout != self.manifest.layout:
            raise _error(
                self.path,
                f"its weights are packed as {self.manifest.layout!r}; target {target.name!r} of this qwench reads "
                f"{target.layout!r}",
            )
        expected = {t.name: t.num_bytes for w in self.program.weights.values() for t in target.packed_tensors(w)}
        if expected != {name: tensor.nbytes for name, tensor in self.tensors.items()}:
            raise _error(self.path, f"{WEIGHTS} doesn't hold the tensors that {PROGRAM} needs")
        return target


def derive_program(
    spec: ModelSpec,
    format_of: Callable[[Weight], Format],
    activations: str,
    is_reordered: Callable[[Weight], bool] = lambda weight: False,
) -> Program:
    """The Program that this version of qwench runs for a model, with the formats that `format_of` gives to weights and
    what they are multiplied by. is_reordered: of which matrices the inputs come in an order of their own."""
    return set_formats(set_orders(fuse(build_program(spec)), is_reordered), format_of, activations)


def program_json(program: Program, plan: MemoryPlan) -> str:
    """The text of program.json."""
    return json.dumps({"program": program.to_dict(), "memory_plan": dataclasses.asdict(plan)}, indent=1) + "\n"


def is_artifact(path: Path) -> bool:
    """Whether the folder is an artifact, sound or damaged: it has two of the three files that only artifacts have."""
    return sum((path / name).is_file() for name in OWN_FILES) >= 2


def refuse_artifact(source: Path) -> None:
    """Raises CheckpointError for an artifact, which has a config.json too, where a checkpoint is wanted."""
    if is_artifact(source):
        raise CheckpointError(
            f"{source} is an artifact, compiled already; give the checkpoint that it was made from. What is in it, and "
            f"the memory it takes: qwench inspect {source}"
        )


def open_artifact(path: str | Path, verify: Literal["rank", "fast", "full"] = "fast") -> Artifact:
    """Opens and verifies the artifact in folder `path`.

    fast: version, presence and size of every file, crc32c of all of them, that of the weights tensor by tensor; TEXTS
    may have been saved anew if they are sound and the tokenizer is the same, which is logged as a warning.
    full: also sha256 of every file, without exception. rank: as fast, but for the weights, which another process on
    this machine verifies: of them only what is used is read. Raises ArtifactError, which says what is wrong and what to
    do.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    for name, record in manifest.files.items():
        try:
            _check_file(path, name, record, with_hash=verify == "full")
        except ArtifactError:
            if verify == "full" or name not in TEXTS or not _is_sound_text(path, name):
                raise
            logger.warning("%s in %s was saved anew after the model was compiled; it is used as it is", name, path)
    config, program, plan = _read_plan(path, manifest)
    weights = _open_weights(path, manifest.crc32c, with_checksums=verify != "rank")
    return Artifact(path, manifest, config, program, plan, weights)


def read_plan(path: Path) -> tuple[QwenchConfig, Program, MemoryPlan]:
    """Of the artifact in folder `path`, what tells how much memory it needs, without a look at its weights. Raises
    ArtifactError."""
    return _read_plan(path, _read_manifest(path))


def _read_manifest(path: Path) -> Manifest:
    if not path.is_dir():
        raise ArtifactError(f"{path} is not a folder; an artifact is the folder that `qwench compile` writes")
    if not is_artifact(path) and any(path.glob("model*.safetensors")):
        raise ArtifactError(f"{path} is a checkpoint, not an artifact; compile it: qwench compile {path} -o ARTIFACT")
    try:
        return Manifest.from_json(_read(path, MANIFEST))
    except ValueError as error:
        raise _error(path, f"{MANIFEST} can't be used: {error}") from None


def _read_plan(path: Path, manifest: Manifest) -> tuple[QwenchConfig, Program, MemoryPlan]:
    config = _parse(path, MANIFEST, lambda: QwenchConfig.from_dict(manifest.config))
    program, plan = _read_program(path, config)
    return _parse(path, MANIFEST, lambda: config.resolve(program.spec)), program, plan  # options that it doesn't keep


def _read_program(path: Path, config: QwenchConfig) -> tuple[Program, MemoryPlan]:
    """Program and plan, which must be those that this qwench makes of the same spec and formats.

    The native executor trusts them, so a Program from elsewhere, even one with the right hash, never reaches it.
    """
    data = _parse(path, PROGRAM, lambda: json.loads(_read(path, PROGRAM)))
    program = _parse(path, PROGRAM, lambda: Program.from_dict(data["program"]))
    plan = _parse(path, PROGRAM, lambda: MemoryPlan(**data["memory_plan"]))
    formats: Mapping[str, Format] = {name: weight.format for name, weight in program.weights.items()}
    derived = _parse(
        path,
        PROGRAM,
        lambda: derive_program(
            program.spec,
            lambda weight: formats[weight.name],
            str(config.activations),
            lambda weight: program.weights[weight.name].reordered,
        ),
    )
    if derived != program or config.prefill_chunk_size is None:
        raise _error(path, f"{PROGRAM} is not the program that this version of qwench makes of the model")
    if plan_memory(program, config.prefill_chunk_size) != plan:
        raise _error(path, f"the memory plan in {PROGRAM} is not the one that this version of qwench makes")
    return program, plan


def _parse(path: Path, name: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, CheckpointError) as error:
        raise _error(path, f"{name} has unexpected content ({error!r})") from None


def _open_weights(path: Path, expected: Mapping[str, int], with_checksums: bool) -> dict[str, npt.NDArray[np.uint8]]:
    """Maps the weights and compares each tensor's crc32c, which also brings its pages into memory."""
    file = _map_weights(path)
    if set(file.entries) != set(expected):
        raise _error(path, f"{WEIGHTS} doesn't hold the tensors that {MANIFEST} lists")
    tensors = {name: file.raw(name) for name in file.entries}
    threads = num_cpus()
    for name, raw in tensors.items() if with_checksums else ():
        if crc32c(raw, threads) != expected[name]:
            raise _error(path, f"tensor {name!r} in {WEIGHTS} is damaged: its crc32c differs")
    return tensors


def _check_file(path: Path, name: str, record: FileRecord, with_hash: bool) -> None:
    file = path / name
    if not file.is_file():
        raise _error(path, f"{name} is missing")
    if (size := file.stat().st_size) != record.num_bytes:
        raise _error(path, f"{name} has {size} bytes instead of {record.num_bytes}")
    if record.crc32c is not None and file_crc32c(file) != record.crc32c:
        raise _error(path, f"{name} was changed: its crc32c differs")
    if not with_hash:
        return
    sha256 = pieces_sha256(_map_weights(path), num_cpus()) if name == WEIGHTS else file_sha256(file)
    if sha256 != record.sha256:
        raise _error(path, f"{name} was changed: its sha256 differs")


def _is_sound_text(path: Path, name: str) -> bool:
    """Whether one of TEXTS can be used though it isn't what was compiled."""
    try:
        text = (path / name).read_text(encoding="utf-8")
        is_sound = not name.endswith(".json") or isinstance(json.loads(text), dict)
    except (OSError, ValueError, RecursionError):
        return False
    return is_sound and (name != "tokenizer.json" or has_tokenizer_of_tables(path))


def _map_weights(path: Path) -> SafetensorsFile:
    try:
        return SafetensorsFile(path / WEIGHTS)
    except ContainerError as error:
        raise _error(path, f"{WEIGHTS} is damaged: {error}") from None


def file_crc32c(path: Path) -> int:
    """The native checksum of a file: a tenth of the time that sha256 takes, or less."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return int(crc32c(np.empty(0, np.uint8), 1))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return int(crc32c(np.frombuffer(mapped, np.uint8), num_cpus()))


def file_sha256(path: Path) -> str:
    """sha256 of a file as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _read(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except FileNotFoundError:
        raise _error(path, f"{name} is missing") from None
    except OSError as error:
        raise _error(path, f"{name} can't be read: {error.strerror}") from None


def _error(path: Path, message: str) -> ArtifactError:
    return ArtifactError(f"artifact {path}: {message}; {_AGAIN.format(path=path)}")
