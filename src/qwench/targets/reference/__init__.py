"""The reference target: NumPy in fp32, the specification of all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwench.targets.target import Target

NAMES = ("reference",)


def is_preferred() -> bool:
    return False


def make_target(name: str) -> Target:
    from qwench.targets.reference.target import ReferenceTarget

    return ReferenceTarget()
