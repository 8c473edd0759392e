"""The portable kernels give an Arm processor, emulated, the bits that this one gets."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import qwench.targets.cpu

NATIVE = Path(qwench.targets.cpu.__file__).parent / "native"
SOURCES = [Path(__file__).with_name("kernel_bits.cpp"), NATIVE / "kernels" / "generic.cpp"]
OPTIONS = ["-std=c++20", "-O3", "-ffp-contract=off", "-fno-math-errno", "-w", f"-I{NATIVE}"]  # CMakeLists.txt's


def _hashes(compiler: str, out: Path, *emulator: str) -> list[str]:
    subprocess.run([compiler, *OPTIONS, "-static", *map(str, SOURCES), "-o", str(out)], check=True)
    return subprocess.run([*emulator, str(out)], check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.slow
def test_an_arm_processor_gets_the_same_bits(tmp_path: Path) -> None:
    """Subnormals among them, which Arm flushes at another moment."""
    for tool, package in (("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu"), ("qemu-aarch64", "qemu-user")):
        if not shutil.which(tool):
            pytest.skip(f"needs a tool: {tool}; apt install {package}")
    here = _hashes("g++", tmp_path / "here")
    assert len(set(here)) == len(here) == 57
    assert _hashes("aarch64-linux-gnu-g++", tmp_path / "arm", "qemu-aarch64") == here
