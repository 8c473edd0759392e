"""The cuda target: `cuda` runs on an NVIDIA GPU, `cuda-interpreter` runs the same kernels on the CPU, to test them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwench.targets.target import Target

NAMES = ("cuda", "cuda-interpreter")

_DRIVER_DEVICES = ("/dev/nvidiactl", "/dev/dxg")  # of the driver on Linux, and on Windows' Linux


def is_preferred() -> bool:
    return any(Path(path).exists() for path in _DRIVER_DEVICES) and find_spec("triton") is not None


def make_target(name: str) -> Target:
    from qwench.targets.cuda.target import CudaTarget

    return CudaTarget(name, is_interpreted=name != "cuda")
