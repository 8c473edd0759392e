"""JSON files, as checkpoints have them. What is in them is their readers' to check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwench.checkpoint.lfs_pointer import why_unreadable
from qwench.errors import CheckpointError


def read_json(path: Path) -> Any:
    """What a file holds. Raises FileNotFoundError where there is none, CheckpointError if it can't be read as JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read as JSON: {why_unreadable(path, error)}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The object in a file; empty when there is no such file. Raises CheckpointError."""
    try:
        data = read_json(path)
    except FileNotFoundError:
        return {}
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, not a JSON object")
    return data
