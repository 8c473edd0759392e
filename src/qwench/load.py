"""MODEL -> Artifact: an artifact folder is opened, a checkpoint folder or a hub id compiled into a cache first.

Knows where compiled models are kept and when they are stale; leaves compiling, downloading and verifying to others.
Called by the engine's front door, `QwenchForCausalLM` and the command line.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import qwench
from qwench.artifact import SCHEMA_VERSION, Artifact, is_artifact, open_artifact
from qwench.checkpoint.hub import find_checkpoint
from qwench.checkpoint.spec import ModelSpec
from qwench.checkpoint.weights import Checkpoint
from qwench.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.errors import ArtifactError, ConfigError
from qwench.file_lock import lock_file
from qwench.host import cache_dir, num_cpus
from qwench.progress import ProgressCallback, Reporter
from qwench.targets.target import get_target

__all__ = ["is_artifact", "resolve_model"]

log = logging.getLogger("qwench")

LOAD_OPTIONS = ("kvcache_num_blocks", "memory")  # decided where the model is loaded, not where it is compiled


def resolve_model(
    model: str | Path, config: QwenchConfig | None = None, *, progress: ProgressCallback | None = None
) -> Artifact:
    """Opens `model`: an artifact folder, a checkpoint folder or a hub id; the latter two are compiled once and cached.

    The artifact's config has the load options of `config`. Raises ConfigError when `config` contradicts the artifact,
    CheckpointError or HubError when there's no such model, and what compiling and opening raise.
    """
    config = config or QwenchConfig()
    path = Path(model).expanduser()
    if path.is_dir() and is_artifact(path):
        artifact = open_artifact(path)
        _check_agreement(artifact, config)
        return _with_options(artifact, config)
    folder, name = find_checkpoint(model, progress)
    return _with_options(_open_cached(folder, name, config, progress), config)


def _check_agreement(artifact: Artifact, config: QwenchConfig) -> None:
    """Every option given is the one that the artifact was compiled with; another target may read the same layout."""
    for field in dataclasses.fields(config):
        asked, compiled = getattr(config, field.name), getattr(artifact.config, field.name)
        if asked is None or asked == compiled or field.name in LOAD_OPTIONS:
            continue
        if field.name == "target" and get_target(asked).layout == artifact.manifest.layout:
            continue
        raise ConfigError(
            f"{field.name} is {asked!r}, but {artifact.path} was compiled with {compiled!r}; leave the option out, or "
            "compile the checkpoint again with it"
        )


def _with_options(artifact: Artifact, config: QwenchConfig) -> Artifact:
    """The artifact with the options of `config` that are decided at load."""
    given = {name: getattr(config, name) for name in (*LOAD_OPTIONS, "target")}
    given = {name: value for name, value in given.items() if value is not None}
    # Resolving again checks the options against each other.
    merged = dataclasses.replace(artifact.config, **given).resolve(artifact.program.spec)
    return dataclasses.replace(artifact, config=merged)


def _open_cached(folder: Path, name: str, config: QwenchConfig, progress: ProgressCallback | None) -> Artifact:
    """The compiled form of a checkpoint, from the cache if a sound one is there."""
    config = dataclasses.replace(config, **dict.fromkeys(LOAD_OPTIONS))
    resolved = config.resolve(ModelSpec.from_folder(folder))
    assert resolved.target is not None
    layout = get_target(resolved.target).layout
    options = {key: value for key, value in resolved.to_dict().items() if key != "target"}
    key = _hash([source_digest(folder, progress), options, layout, SCHEMA_VERSION, qwench.__version__])
    out = cache_dir() / "compiled" / f"{name.replace('/', '--')}-{resolved.weights}-{key[:16]}"
    with lock_file(out.with_name(f".{out.name}.lock")):
        if out.exists():
            try:
                artifact = open_artifact(out)
                # Targets that read one layout share the cached artifact; each gets the target it asked for.
                return dataclasses.replace(
                    artifact, config=dataclasses.replace(artifact.config, target=resolved.target)
                )
            except ArtifactError as error:
                log.warning("the cached model can't be used and is compiled again: %s", error)
                shutil.rmtree(out)
        return compile_checkpoint(folder, out, config, progress=progress, source_name=name)


def source_digest(folder: Path, progress: ProgressCallback | None = None) -> str:
    """`Checkpoint.content_digest`, remembered as long as no file of the checkpoint changes size, time or inode."""
    checkpoint = Checkpoint(folder, num_cpus())
    state = [[p.name, (s := p.stat()).st_size, s.st_mtime_ns, s.st_ino] for p in checkpoint.files()]
    memo = cache_dir() / "digests" / f"{_hash(str(folder.resolve()))[:24]}.json"
    try:
        known = json.loads(memo.read_text())
        if known["files"] == state and isinstance(known["digest"], str):
            return str(known["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent or damaged: it is only a memo, the digest is computed anew
    digest = checkpoint.content_digest(report=functools.partial(Reporter(progress), "check"))
    memo.parent.mkdir(parents=True, exist_ok=True)
    written = memo.with_suffix(f".{os.getpid()}")
    written.write_text(json.dumps({"files": state, "digest": digest}))
    os.replace(written, memo)
    return digest


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
