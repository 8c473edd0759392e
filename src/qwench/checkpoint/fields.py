"""Checked access to the fields of a JSON object; every error names the file, the field and the value.

Called by the readers of config.json, and of the option rope_scaling, which is written like a part of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qwench.errors import CheckpointError, QwenchError

LARGEST_SIZE = 2**31 - 1  # of any dimension: the native code counts them in 32 bits


class Fields:
    """`values` as found in `where`; errors are of the class `error_class`. None counts as absent."""

    def __init__(self, values: Mapping[str, Any], where: str, error_class: type[QwenchError] = CheckpointError) -> None:
        self.values, self.where, self.error_class = values, where, error_class

    def error(self, message: str) -> QwenchError:
        return self.error_class(f"{self.where}: {message}")

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def positive(self, key: str, default: int | None = None) -> int:
        """An integer from 1 to LARGEST_SIZE."""
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise self.error(f"{key} is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_SIZE:
            raise self.error(f"{key} must be a positive integer below 2^31, but is {value!r}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(f"{key} must be true or false, but is {value!r}")
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise self.error(f"{key} is missing")
            return default
        if not _is_positive(value):
            raise self.error(f"{key} must be a positive number, but is {value!r}")
        return float(value)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """`count` finite numbers above 0."""
        value = self.values.get(key)
        if not isinstance(value, (list, tuple)) or len(value) != count or not all(map(_is_positive, value)):
            raise self.error(f"{key} must be a list of {count} positive numbers, but is {value!r}")
        return tuple(map(float, value))


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
