"""The cuda target: `cuda` runs on an NVIDIA GPU, `cuda-interpreter` runs the same kernels on the CPU, to test them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwench.targets.target import Target

NAMES = ("cuda", "cuda-interpreter")


def make_target(name: str) -> Target:
    from qwench.targets.cuda.target import CudaTarget

    return CudaTarget(name, is_interpreted=name != "cuda")
