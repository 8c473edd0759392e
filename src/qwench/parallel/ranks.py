"""The processes of a host's ranks but the first, which is the caller's own: it starts, watches and ends them.

They share a file in memory that has no name, and end when the first does, in whatever way. Knows nothing of what they
compute.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import numpy as np

from qwench.errors import TargetError
from qwench.host import format_bytes
from qwench.targets.target import Bytes

END_S = 5.0  # that ranks have to end by themselves


class Ranks:
    """reason: why a rank was lost; None while all are there. on_loss: called once that is known."""

    def __init__(self, num_bytes: int, options: Sequence[Mapping[str, Any]], first: int) -> None:
        """Starts a process for each of `options`, what `rank_process.py` needs. num_bytes: of shared memory, which is
        used as far as it is written. first: the number of the first one's rank. Raises TargetError."""
        self._first = first
        self.reason: str | None = None
        self.on_loss: Callable[[], None] = lambda: None
        self._is_closing = False
        try:
            descriptor = os.memfd_create("qwench-ranks", os.MFD_CLOEXEC)
        except (AttributeError, OSError) as error:
            raise TargetError(f"ranks need memory to share, which this system doesn't give: {error}") from None
        try:
            self.memory = _mapped(descriptor, num_bytes)
            self._processes = [self._start(descriptor, num_bytes, rank) for rank in options]
        finally:
            os.close(descriptor)

    def _start(self, descriptor: int, num_bytes: int, options: Mapping[str, Any]) -> subprocess.Popen[str]:
        given = {**options, "descriptor": descriptor, "num_bytes": num_bytes}
        command = [sys.executable, "-m", "qwench.parallel.rank_process", json.dumps(given)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=(descriptor,)
        )

    def watch(self, lose: Callable[[int], None]) -> None:
        """From now on `lose` is called, in a thread of its own, with a rank of this host that has ended."""
        for rank, process in enumerate(self._processes, 1):
            threading.Thread(target=self._wait_for, args=(rank, process, lose), daemon=True).start()

    def _wait_for(self, rank: int, process: subprocess.Popen[str], lose: Callable[[int], None]) -> None:
        assert process.stdout is not None
        said = process.stdout.read().strip()
        status = process.wait()
        if self._is_closing:
            return
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        self.reason = (
            self.reason or f"rank {self._first + rank - 1} (process {process.pid}) {how}{f': {said}' if said else ''}"
        )
        lose(rank)
        self.on_loss()

    def close(self) -> None:
        """Waits for their end, and kills those that take longer than 5 s. Idempotent."""
        self._is_closing = True
        for process in self._processes:
            _close(process.stdin)
        for process in self._processes:
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _mapped(descriptor: int, num_bytes: int) -> Bytes:
    try:
        os.ftruncate(descriptor, num_bytes)
        return np.frombuffer(mmap.mmap(descriptor, num_bytes), np.uint8)
    except (OSError, OverflowError) as error:
        raise TargetError(
            f"ranks need {format_bytes(num_bytes)} of addresses to share, of which they use a part, and this system "
            f"doesn't give them (ulimit -v, ulimit -f): {error}"
        ) from None


def _close(stream: IO[str] | None) -> None:
    try:
        if stream is not None:
            stream.close()
    except BrokenPipeError:
        pass  # it has ended already
