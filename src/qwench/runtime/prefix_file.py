"""A saved prefix: the keys and values of a prompt's beginning in a file, written atomically and verified when read.

    magic, sha256 of all that follows, length of the JSON (8 bytes), JSON, blocks

Blocks are bytes here; only the executor that gave them knows their layout. Used by `LLM`, which checks that model and
cache are those of the file, and by `qwench prefix list`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwench.errors import CapacityError, PrefixError
from qwench.targets.target import Bytes

SUFFIX = ".prefix"
_MAGIC = b"QWPREFX2"
_DIGEST_BYTES = hashlib.sha256().digest_size
_HEAD_BYTES = len(_MAGIC) + _DIGEST_BYTES + 8
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class SavedPrefix:
    """Full blocks of the KV cache, and their tokens.

    model: hash of all that their content depends on: weights, Program, kernels, kind of cache. firsts: for each cache
    group the index of its first block here; those before lie behind the group's window. blocks: [num_blocks,
    block_bytes] uint8, group after group.
    """

    model: str
    token_ids: list[int]
    firsts: list[int]
    blocks: Bytes

    def write(self, path: Path) -> int:
        """Writes or replaces the file, in a new folder if need be, and returns its size in bytes. Raises CapacityError
        when the disk is full, PrefixError when nothing can be written there."""
        fields = {"model": self.model, "token_ids": self.token_ids, "firsts": self.firsts, "shape": self.blocks.shape}
        text = json.dumps(fields).encode()
        body = [len(text).to_bytes(8, "little"), text, np.ascontiguousarray(self.blocks).tobytes()]
        digest = hashlib.sha256()
        for part in body:
            digest.update(part)
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.writelines((_MAGIC, digest.digest(), *body))
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            if error.errno in _FULL:
                raise CapacityError(
                    f"the disk is full while writing {path}; nothing was left behind: free some space"
                ) from error
            raise PrefixError(f"{path} can't be written: {error.strerror}; give another file") from error
        return _HEAD_BYTES + len(text) + self.blocks.nbytes

    @classmethod
    def read(cls, path: Path) -> SavedPrefix:
        """Raises PrefixError unless the file's sha256 is right."""
        try:
            data = np.fromfile(path, np.uint8)
        except OSError as error:
            raise PrefixError(f"{path} can't be read: {error.strerror}") from None
        start = len(_MAGIC)
        if data[:start].tobytes() != _MAGIC:
            raise PrefixError(f"{path} is not a prefix that this version of qwench saved; save it again")
        if hashlib.sha256(data[start + _DIGEST_BYTES :].data).digest() != data[start : start + _DIGEST_BYTES].tobytes():
            raise PrefixError(f"{path} is damaged: its sha256 differs; save it again")
        text_bytes = int.from_bytes(data[_HEAD_BYTES - 8 : _HEAD_BYTES].tobytes(), "little")
        fields = json.loads(data[_HEAD_BYTES : _HEAD_BYTES + text_bytes].tobytes())
        blocks = data[_HEAD_BYTES + text_bytes :].reshape(fields["shape"])
        return cls(fields["model"], fields["token_ids"], fields["firsts"], blocks)
