"""Seconds since this process started: the clock that a person at a terminal reads."""

from __future__ import annotations

import os
import time
from pathlib import Path

_IMPORTED_S = time.monotonic()


def process_age_s() -> float:
    """Seconds since the kernel started this process, to the hundredth; where there's no /proc (macOS), since this
    module was imported, which is about 0.1 s later."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), counted from after the name
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
    except (OSError, AttributeError, IndexError, ValueError):
        return time.monotonic() - _IMPORTED_S
