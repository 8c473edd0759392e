"""Checks of the values of options, shared by `QwenchConfig` and the configs of `qwench.rbln`.

None always passes: it stands for the default.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from qwench.errors import ConfigError


def check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raises ConfigError unless `value` is one of `allowed`."""
    if value is not None and (isinstance(value, bool) or value not in allowed):
        raise ConfigError(f"{name} is {value!r}; allowed: {', '.join(map(str, allowed))}")


def check_positive(name: str, value: object, multiple: int = 1) -> None:
    """Raises ConfigError unless `value` is an integer above 0, and a multiple of `multiple`."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value!r}; it must be a positive integer")
    if value % multiple:
        raise ConfigError(f"{name} is {value}; it must be a multiple of {multiple}")


def check_flag(name: str, value: object) -> None:
    """Raises ConfigError unless `value` is True or False."""
    if value is not None and not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; it must be True or False")


def check_seconds(name: str, value: object) -> None:
    """Raises ConfigError unless `value` is a finite number above 0."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigError(f"{name} is {value!r}; it must be a positive number of seconds")


def check_known(names: Iterable[str], known: Sequence[str]) -> None:
    """Raises ConfigError for names that aren't options."""
    if unknown := sorted(set(names) - set(known)):
        raise ConfigError(f"unknown option {', '.join(map(repr, unknown))}; there are: {', '.join(known)}")


def batch_sizes(name: str, value: object) -> tuple[int, ...] | None:
    """Positive integers, largest first, none twice. Raises ConfigError."""
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError(f"{name} is {value!r}; it must be a list of positive integers")
    sizes = list(value)
    if not sizes:
        raise ConfigError(f"{name} is empty; leave it out, or list at least one batch size")
    for size in sizes:
        check_positive(f"an entry of {name}", 0 if size is None else size)
    return tuple(sorted(set(sizes), reverse=True))
