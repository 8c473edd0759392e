"""This machine: its name, and its ceilings as measured now. Needs qwench's native library, nothing of its models.

A shared machine changes from minute to minute, so ceilings are measured in every round, beside the contenders.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cost import Cost

READ_MEGABYTES = 512  # beyond every cache
TOLERATED_CPUS = 0.2  # that others may use; half a busy process on two cores already halves a barrier's speed
CHUNK_BYTES = 1 << 24
ARITHMETIC = {"bf16": "bf16", "int8": "int8", "int4": "int8", "int4-head8": "int8"}  # format -> what multiplies it


@dataclass(frozen=True)
class Ceiling:
    """read_gbps: memory, 10^9 bytes/s. peak_gops: kind of arithmetic (fp32, bf16, int8) -> 10^9 operations/s; bf16 is
    the faster of the two where the processor multiplies it slowly or not at all."""

    read_gbps: float
    peak_gops: dict[str, float]

    def seconds(self, cost: Cost, format_name: str) -> float:
        """The least time that a step of this cost takes, were its parts to overlap perfectly."""
        matrix, attention = self.peak_gops[ARITHMETIC[format_name]], self.peak_gops["bf16"]
        arithmetic_s = (cost.matrix_ops / matrix + cost.attention_ops / attention) / 1e9
        return max(arithmetic_s, cost.read_bytes / (self.read_gbps * 1e9))


class Machine:
    """Measures ceilings with `threads` threads and the instructions that qwench uses for `target`."""

    def __init__(self, threads: int, target: str = "cpu") -> None:
        from qwench.evaluate.machine import this_machine
        from qwench.targets.cpu.variants import variants_of

        self.threads, self._variants = threads, variants_of(target)
        self._machine = this_machine(target, threads)

    def measure(self) -> Ceiling:
        return Ceiling(
            self._machine.read_gbps(READ_MEGABYTES),
            {kind: self._machine.peak_gops(kind) for kind in ("fp32", "bf16", "int8")},
        )

    def describe(self) -> dict[str, Any]:
        from qwench.host import cpu_name, num_cpus

        flags = _cpu_flags()
        return {
            "cpu": cpu_name(),
            "threads": self.threads,
            "cpus": num_cpus(),
            "variants": list(self._variants),
            "instructions": [f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if f in flags],
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": f"{platform.system()} {platform.release()}",
        }


class LoadWatch:
    """How much of the machine others use while process `pid` works: such figures deserve no trust. Linux only."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._start_s, self._start = time.perf_counter(), self._seconds()

    def others_cpus(self) -> float:
        """Processors that other processes used, and the host took away, since the watch began; 0.0 if unknown."""
        elapsed_s = time.perf_counter() - self._start_s
        return max(0.0, (self._seconds() - self._start) / max(elapsed_s, 1e-3))

    def _seconds(self) -> float:
        """Processor seconds of everybody but `pid` and those of its children that have ended."""
        try:
            totals = [int(t) for t in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
            own = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            return 0.0
        user, nice, system, _idle, _iowait, irq, softirq, steal = totals
        ticks = user + nice + system + irq + softirq + steal - sum(map(int, own[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")


def _cpu_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def measure_copy_s(source: Path, num_bytes: int, scratch: Path) -> float:
    """Seconds to read the weights in `source` and write `num_bytes` to the disk of `scratch`: compiling's ceiling."""
    block = bytes(CHUNK_BYTES)
    start = time.perf_counter()
    for path in sorted(source.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.read(CHUNK_BYTES):
                pass
    with scratch.open("wb", buffering=0) as file:
        for done in range(0, num_bytes, CHUNK_BYTES):
            file.write(block[: min(CHUNK_BYTES, num_bytes - done)])
    seconds = time.perf_counter() - start
    scratch.unlink()
    return seconds
