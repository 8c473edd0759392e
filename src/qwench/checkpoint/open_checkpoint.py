"""Path -> Checkpoint: finds out what kind it is. Called by the compiler and the cache of compiled models."""

from __future__ import annotations

from pathlib import Path

from qwench.checkpoint.checkpoint import Checkpoint
from qwench.checkpoint.weights import SafetensorsCheckpoint
from qwench.errors import CheckpointError


def open_checkpoint(path: Path, num_threads: int = 1) -> Checkpoint:
    """The checkpoint at `path`, its files checked, tensors not yet read. Raises CheckpointError."""
    if (path / "adapter_model.safetensors").is_file() and not (path / "config.json").exists():
        raise CheckpointError(f"{path} is an adapter; merge it into its base model and save that")
    return SafetensorsCheckpoint(path, num_threads)
