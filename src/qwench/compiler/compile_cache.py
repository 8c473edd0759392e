"""The cache of compiled models: a checkpoint is compiled once, and again only when its files, the options or the
version of qwench change. Called by `load.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import qwench
from qwench.artifact.artifact import SCHEMA_VERSION, Artifact, open_artifact
from qwench.checkpoint.checkpoint import Checkpoint
from qwench.checkpoint.hub import find_checkpoint
from qwench.checkpoint.open_checkpoint import open_checkpoint
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.errors import ArtifactError
from qwench.host import cache_dir, num_cpus
from qwench.progress import ProgressCallback, Reporter
from qwench.shared_files import lock_file, replace_text
from qwench.targets.registry import get_target

log = logging.getLogger("qwench")


def open_compiled(model: str | Path, config: QwenchConfig, progress: ProgressCallback | None = None) -> Artifact:
    """The compiled form of a checkpoint folder or hub id, from the cache if it is there and undamaged.

    Raises CheckpointError or HubError when there's no such model, and what compiling and opening raise.
    """
    folder, name = find_checkpoint(model, progress)
    checkpoint = open_checkpoint(folder, num_cpus())
    resolved = config.for_checkpoint(checkpoint.is_quantized).resolve(checkpoint.spec)
    assert resolved.target is not None
    layout = get_target(resolved.target).layout
    options = {key: value for key, value in resolved.to_saved().items() if key != "target"}
    key = _hash([source_digest(checkpoint, progress), options, layout, SCHEMA_VERSION, qwench.__version__])
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


def source_digest(checkpoint: Checkpoint, progress: ProgressCallback | None = None) -> str:
    """`Checkpoint.content_digest`, remembered as long as no file of the checkpoint changes size, time or inode."""
    state = [[p.name, (s := p.stat()).st_size, s.st_mtime_ns, s.st_ino] for p in checkpoint.files()]
    memo = cache_dir() / "digests" / f"{_hash(str(checkpoint.path.resolve()))[:24]}.json"
    try:
        known = json.loads(memo.read_text())
        if known["files"] == state and isinstance(known["digest"], str):
            return str(known["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent or damaged: it is only a memo, the digest is computed anew
    digest = checkpoint.content_digest(report=functools.partial(Reporter(progress), "check"))
    replace_text(memo, json.dumps({"files": state, "digest": digest}))
    return digest


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
