"""The cpu target: `cpu` takes the fastest kernels that this processor runs, the others those of one instruction set."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwench.targets.target import Target

NAMES = ("cpu", "cpu-avx512", "cpu-avx2", "cpu-generic")


def is_preferred() -> bool:
    return False


def make_target(name: str) -> Target:
    from qwench.targets.cpu.target import CpuTarget

    return CpuTarget(name)
