"""For how long a model that nobody uses stays loaded, as Ollama's clients and its command line write it.

Imports nothing: the command line and the bodies of requests read it.
"""

from __future__ import annotations

import re
from typing import Any

UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
FOREVER = 1e9  # 30 years
_PART = r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)"


def keep_alive_s(value: Any) -> float:
    """Seconds of a number of them, or of a duration such as "10m", "1h30m"; FOREVER for a negative one.

    Raises ValueError.
    """
    if isinstance(value, str):
        text = value.strip()
        number = re.fullmatch(r"[+-]?\d{1,12}(\.\d*)?", text, re.ASCII)
        value = float(text) if number else _duration_s(text)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise ValueError(f'{value!r} is no duration; give seconds, or a text such as "10m"; -1 is for ever')
    return FOREVER if value < 0 else min(float(value), FOREVER)


def _duration_s(text: str) -> float:
    """As Go writes them. Raises ValueError."""
    plain = text.lstrip("+-")
    if len(text) > 64 or len(text) - len(plain) > 1 or not re.fullmatch(f"(?:{_PART})+", plain, re.ASCII):
        raise ValueError(f'{text[:64]!r} is no duration; give seconds, or a text such as "10m"; -1 is for ever')
    seconds = sum(float(number) * UNITS_S[unit] for number, unit in re.findall(_PART, plain, re.ASCII))
    return -seconds if text.startswith("-") else seconds
