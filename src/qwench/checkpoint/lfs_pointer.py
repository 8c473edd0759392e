"""Git LFS pointers: the few lines that a clone made without git-lfs has in place of its large files.

Called by readers of checkpoints where a file isn't what it should be.
"""

from __future__ import annotations

from pathlib import Path

_BEGINNING = b"version https://git-lfs.github.com/spec/"


def why_unreadable(path: Path, reason: object) -> str:
    """`reason`, unless the file is a pointer: then that, and how to get what it points to."""
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(_BEGINNING)) == _BEGINNING
    except OSError:
        is_pointer = False
    return "it is a Git LFS pointer, not the file itself: run git lfs pull there" if is_pointer else str(reason)
