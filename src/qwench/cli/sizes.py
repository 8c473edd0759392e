"""Sizes with units: "8GiB" -> bytes. `host.format_bytes` is the way back."""

from __future__ import annotations

import re

from qwench.errors import ConfigError

UNITS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


def parse_size(text: str, option: str) -> int:
    """Bytes of "8GiB", "800MB", "1.5 GiB" or "4096". Raises ConfigError that names `option`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text, re.ASCII)
    factor = UNITS.get(match[2].upper()) if match else None
    size = int(float(match[1]) * factor) if match and factor else 0
    if size < 1:
        raise ConfigError(f"{option} is {text!r}; give a positive size such as 8GiB, 800MB or 4096")
    return size
