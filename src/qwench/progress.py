"""How far a long job is: what compiling and downloading report, and the time left by the speed so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """stage: "download", "check", "pack" or "finish". left_s is None while it can't be told."""

    stage: str
    bytes_done: int
    bytes_total: int
    elapsed_s: float
    left_s: float | None


ProgressCallback = Callable[[Progress], None]


class Reporter:
    """Turns bytes done into Progress. The clock runs from here; bytes that were done before it don't count as speed."""

    def __init__(self, callback: ProgressCallback | None, bytes_before: int = 0) -> None:
        self._callback, self._before, self._start = callback, bytes_before, time.perf_counter()

    def __call__(self, stage: str, bytes_done: int, bytes_total: int) -> None:
        if self._callback is not None:
            elapsed, done = time.perf_counter() - self._start, bytes_done - self._before
            left = elapsed * (bytes_total - bytes_done) / done if done > 0 else None
            self._callback(Progress(stage, bytes_done, bytes_total, elapsed, left))
