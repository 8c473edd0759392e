"""The machine and its environment: processors, free memory, the age of this process, the cache folder, the hub.

The one place of the core that reads environment variables.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_IMPORTED_S = time.monotonic()


def num_cpus() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wants_traceback() -> bool:
    """Whether $QWENCH_DEBUG asks for tracebacks where the command line would print one line."""
    return bool(os.environ.get("QWENCH_DEBUG"))


def forced_kernels() -> str | None:
    """The kernels that $QWENCH_KERNELS demands of the target cpu, or None: those that are measured to be fastest."""
    return os.environ.get("QWENCH_KERNELS") or None


def mpi_place() -> tuple[int, int]:
    """Which of the processes this one is that `mpiexec` or `srun` started, and how many they are; (0, 1) for one that
    was started alone. Open MPI, MPICH and its relatives, and Slurm with PMIx tell it so."""
    for place, size in (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("PMI_RANK", "PMI_SIZE"),
        ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"),
    ):
        if os.environ.get(place, "").isdigit() and os.environ.get(size, "").isdigit():
            return int(os.environ[place]), int(os.environ[size])
    return 0, 1


def interprets_triton() -> bool:
    """Whether $TRITON_INTERPRET has Triton run kernels on the CPU, to test them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def interpret_triton() -> None:
    """Has Triton do so. Takes effect before it is imported alone."""
    os.environ["TRITON_INTERPRET"] = "1"


def cpu_name() -> str:
    """The processor's model name."""
    import platform  # slow to import, and rarely needed

    lines = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    return lines[0].partition(":")[2].strip() if lines else platform.processor() or platform.machine()


def available_memory_bytes() -> int:
    """Bytes that could be allocated now without swapping, within the control group's limit if there is one."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = _read("/proc/meminfo")
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limits = [
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
            "/sys/fs/cgroup/memory/memory.stat",
        ),
    ]
    for limit, usage, stat in limits:
        if _read(limit).strip().isdigit():
            # Clean file pages count as used, but the kernel gives them back when asked.
            cached = sum(
                int(line.split()[1])
                for line in _read(stat).splitlines()
                if line.split()[0] in ("inactive_file", "total_inactive_file")
            )
            used = int(_read(usage).strip() or 0) - cached
            available = min(available, int(_read(limit)) - max(used, 0))
    return max(available, 0)


def format_bytes(num_bytes: float) -> str:
    """Three digits and a binary unit: "3.42 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(num_bytes) < 999.5 or unit == "TiB":
            break
        num_bytes /= 1024
    digits = 0 if unit == "B" or abs(num_bytes) >= 99.95 else 1 if abs(num_bytes) >= 9.995 else 2
    return f"{num_bytes:.{digits}f} {unit}"


def process_age_s() -> float:
    """Seconds since the kernel started this process, to the hundredth; where there's no /proc (macOS), since this
    module was imported, which is about 0.1 s later."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), counted from after the name
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
    except (OSError, AttributeError, IndexError, ValueError):
        return time.monotonic() - _IMPORTED_S


def cache_dir() -> Path:
    """Where compiled models are kept: $QWENCH_CACHE, else qwench in the user's cache folder."""
    if given := os.environ.get("QWENCH_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwench"


def hub_endpoint() -> str | None:
    """The hub that $HF_ENDPOINT names; None: huggingface_hub's own default."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
