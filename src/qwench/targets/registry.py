"""Targets by name. A folder beside this file is a target: its `__init__` lists the NAMES that it answers to.

Finds them by looking, so that adding a target is adding a folder; imports an implementation only when it is asked for.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import Protocol, cast

import qwench.targets
from qwench.errors import TargetError
from qwench.targets.target import Target


class TargetPackage(Protocol):
    """What the `__init__` of a target's folder holds."""

    NAMES: tuple[str, ...]

    def is_preferred(self) -> bool:
        """Whether this machine has what makes it the choice of a user who names no target. Quick to say."""
        ...

    def make_target(self, name: str) -> Target:
        """Raises TargetError if this machine can't run it."""
        ...


@cache
def _packages() -> dict[str, TargetPackage]:
    found = [
        import_module(f"{qwench.targets.__name__}.{m.name}")
        for m in pkgutil.iter_modules(qwench.targets.__path__)
        if m.ispkg
    ]
    return {name: cast(TargetPackage, package) for package in found for name in package.NAMES}


def target_names() -> tuple[str, ...]:
    """All that `get_target` knows."""
    return tuple(_packages())


def default_target() -> str:
    """The target of those who name none: that of a device that is here, else `cpu`."""
    return next((package.NAMES[0] for package in _packages().values() if package.is_preferred()), "cpu")


def get_target(name: str) -> Target:
    """The target called `name`. Raises TargetError if there's none or this machine can't run it."""
    if name not in _packages():
        raise TargetError(f"unknown target {name!r}; there are: {', '.join(target_names())}")
    return _packages()[name].make_target(name)
