"""API keys: read from a file, compared in constant time. Knows no HTTP but the form of the header."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from pathlib import Path

from qwench.errors import ConfigError

MIN_KEY_LENGTH = 16


class ApiKeys:
    """The keys that open the server. Only their SHA-256 is kept, so that all are compared at the same length."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    @classmethod
    def from_file(cls, path: Path) -> ApiKeys:
        """A key per line; empty lines and lines that begin with # don't count. Raises ConfigError."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the API keys in {path} can't be read: {error}") from None
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise ConfigError(f"{path} holds no API key; write one per line")
        for number, key in enumerate(keys, 1):
            if len(key) < MIN_KEY_LENGTH or not key.isascii() or " " in key:
                raise ConfigError(
                    f"API key {number} in {path} must be {MIN_KEY_LENGTH} or more ASCII characters without blanks; "
                    "`openssl rand -hex 32` makes one"
                )
        return cls(keys)

    def accepts(self, authorization: bytes, bare_key: bytes = b"") -> bool:
        """Whether an Authorization header's value is "Bearer" and one of the keys, or "Basic" with a key as any user's
        password, or bare_key is one. Takes as long for each key."""
        scheme, _, key = authorization.partition(b" ")
        kind = scheme.lower()
        is_known = self._has(_password(key) if kind == b"basic" else key.strip())
        return self._has(bare_key.strip()) or (is_known and kind in (b"bearer", b"basic"))

    def _has(self, key: bytes) -> bool:
        given = _digest(key)
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches)


def _password(credentials: bytes) -> bytes:
    """Of RFC 7617's base64 of "user:password"; empty, which is no key, for anything else."""
    try:
        return base64.b64decode(credentials.strip(), validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
