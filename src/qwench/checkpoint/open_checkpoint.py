"""Path -> Checkpoint: finds out what kind it is. Called by the compiler and the cache of compiled models."""

from __future__ import annotations

from pathlib import Path

from qwench.checkpoint.checkpoint import Checkpoint
from qwench.checkpoint.gguf.container import SUFFIX, is_gguf
from qwench.checkpoint.gguf.gguf_checkpoint import GgufCheckpoint, part_paths
from qwench.checkpoint.weights import ADAPTER, SafetensorsCheckpoint
from qwench.errors import CheckpointError


def open_checkpoint(path: Path, num_threads: int = 1) -> Checkpoint:
    """The checkpoint at `path`, a folder or a GGUF file, its files checked, tensors not yet read.

    A folder without a config.json may hold one GGUF model instead. Raises CheckpointError.
    """
    if is_gguf(path):
        return GgufCheckpoint(path, num_threads)
    if not (path / "config.json").exists():
        if (path / ADAPTER).is_file():
            raise CheckpointError(f"{path} is an adapter; give its base model, and the adapter as --lora {path}")
        if (found := gguf_of_folder(path)) is not None:
            return GgufCheckpoint(found, num_threads)
    return SafetensorsCheckpoint(path, num_threads)


def gguf_of_folder(folder: Path) -> Path | None:
    """The one GGUF model in a folder, by its first part; None if there is none. Raises CheckpointError for several."""
    files = sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
    models = sorted({part_paths(file)[0] for file in files})
    if len(models) > 1:
        told = ", ".join(model.name for model in models)
        raise CheckpointError(f"{folder} holds several models ({told}); give the file of one")
    return models[0] if models else None
