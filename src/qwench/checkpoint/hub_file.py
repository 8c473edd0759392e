"""One file of the hub: downloaded, resumed where a connection was lost, and verified by its hash.

Knows no checkpoint. Called by hub.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO


@dataclass(frozen=True)
class RemoteFile:
    """A file on the hub: where its bytes are, how many, and its etag.

    The etag is the sha256 of a large file, git's blob sha1 of a small one; from other servers it may mean nothing.
    """

    name: str
    url: str
    num_bytes: int
    etag: str
    headers: dict[str, str]


def download(file: RemoteFile, partial: Path, advance: Callable[[int], None]) -> None:
    """Resumes after every lost connection, as long as each attempt makes progress."""
    while True:
        before = size_of(partial)
        try:
            return _append_rest(file, partial, advance)
        except Exception as error:
            if not is_unreachable(error) or size_of(partial) <= before:
                raise


def _append_rest(file: RemoteFile, partial: Path, advance: Callable[[int], None]) -> None:
    """Appends to `partial` what it lacks of the file."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if size_of(partial) > file.num_bytes:
        partial.unlink()
    had_bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with partial.open("ab") as raw:
            sink: Any = _Counted(raw, advance)
            http_get(file.url, sink, resume_size=raw.tell(), headers=dict(file.headers), expected_size=file.num_bytes)
    finally:
        if had_bars:
            enable_progress_bars()


class _Counted:
    """A file that reports its length after each write."""

    def __init__(self, file: BinaryIO, advance: Callable[[int], None]) -> None:
        self._file, self._advance = file, advance

    def write(self, data: bytes) -> int:
        count = self._file.write(data)
        self._advance(self._file.tell())
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def is_sound(path: Path, file: RemoteFile) -> bool:
    """Size, and the hash if the etag is one: sha256 (64 hex digits) or git's blob sha1 (40)."""
    if size_of(path) != file.num_bytes:
        return False
    if re.fullmatch("[0-9a-f]{64}", file.etag):
        digest = hashlib.sha256()
    elif re.fullmatch("[0-9a-f]{40}", file.etag):
        digest = hashlib.sha1(f"blob {file.num_bytes}\0".encode(), usedforsecurity=False)
    else:
        return True
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == file.etag


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def is_unreachable(error: Exception) -> bool:
    """Whether the hub could not be reached at all."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return False
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, (OfflineModeIsEnabled, ConnectionError, TimeoutError)) or library.startswith(
        ("httpx", "requests", "urllib3")
    )
