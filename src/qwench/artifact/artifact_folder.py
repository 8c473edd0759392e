"""Writes an artifact's folder atomically: into a sibling folder that is renamed once everything is on disk.

Refuses to replace a folder that isn't an artifact. Called by `compiler/compiler.py`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qwench.artifact.artifact import is_artifact
from qwench.errors import ArtifactError, CapacityError
from qwench.shared_files import try_lock

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_destination(out: Path, overwrite: bool, source: Path) -> None:
    """Raises ArtifactError if an artifact can't or mustn't be put at `out`."""
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise ArtifactError(f"{out} exists and is not a folder; give another output folder")
    if not any(out.iterdir()):
        return
    if not is_artifact(out):
        raise ArtifactError(f"{out} is not empty and not an artifact, so it is left alone; give another folder")
    if source.resolve().is_relative_to(out.resolve()):
        raise ArtifactError(f"{out} holds the checkpoint itself; give another output folder")
    if not overwrite:
        raise ArtifactError(f"{out} is an artifact already; say --overwrite (overwrite=True) to replace it")


@contextmanager
def new_artifact_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder beside `out` to fill, which takes the name `out` when the block ends without an exception.

    Whatever ends the block otherwise, the new folder is removed and `out` is as it was. Raises CapacityError when the
    disk is full, ArtifactError when the folder can't be written.
    """
    out = Path(os.path.abspath(out))
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    lock = -1
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out)
        partial.mkdir()
        lock = try_lock(partial)
        yield partial
        _sync(partial)
        _rename(partial, out, overwrite)
        _sync_folder(out.parent)
    except OSError as error:
        raise _typed(error, out) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if lock >= 0:
            os.close(lock)


def _rename(partial: Path, out: Path, overwrite: bool) -> None:
    """`partial` becomes `out`. An artifact that is there changes places with it in one step where the system can."""
    if not (out.is_dir() and any(out.iterdir())):
        os.replace(partial, out)
        return
    check_destination(out, overwrite, partial)
    if _exchange(partial, out):
        return
    old = out.parent / f".{out.name}.old-{os.getpid()}"
    os.replace(out, old)
    try:
        os.replace(partial, out)
    except BaseException:
        os.replace(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two folders atomically; False where the kernel or the file system can't (other than Linux, some mounts)."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _remove_abandoned(out: Path) -> None:
    """Removes partial folders of killed compilers; a running one holds the lock of its folder."""
    for folder in out.parent.glob(f".{out.name}.partial-*"):
        if (lock := try_lock(folder)) >= 0:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _sync(folder: Path) -> None:
    """Flushes every file and folder to disk, before the rename."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _typed(error: OSError, out: Path) -> ArtifactError | CapacityError:
    if error.errno in _FULL:
        return CapacityError(f"the disk is full ({error.strerror}) while writing {out}; nothing was left behind: free "
                             "some space or give an output folder on another disk")  # fmt: skip
    return ArtifactError(f"{out} can't be written: {error.strerror or error}; give another output folder")
