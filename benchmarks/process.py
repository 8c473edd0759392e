"""A worker seen from outside: started with its interpreter, asked by JSON lines, stopped while others work.

Knows no contender. A worker that isn't asked anything is stopped by a signal, so that no thread pool of an idle
contender spins on the processors of the one that is measured.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.machine import LoadWatch

ROOT = Path(__file__).resolve().parent.parent


class WorkerError(Exception):
    """The worker answered with an error, ended, or took too long. `is_absent`: its library isn't installed."""

    def __init__(self, message: str, is_absent: bool = False) -> None:
        super().__init__(message)
        self.is_absent = is_absent


class Worker:
    """`contender` under the interpreter `python`; what it and its libraries print is appended to `log`.

    program: the binary that the contender runs, if it is one that does.
    """

    def __init__(self, contender: str, python: str, log: Path, program: str | None = None) -> None:
        self.contender, self.log = contender, log
        self.started_s = time.perf_counter()
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        command = [python, "-m", "benchmarks.worker", contender, *filter(None, [program])]
        try:
            with log.open("ab") as stderr:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment
                )
        except OSError as error:
            raise WorkerError(f"{python} can't be started: {error.strerror}", is_absent=True) from None
        self._received = b""
        self.load = LoadWatch(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, verb: str, timeout_s: float = 3600, **arguments: Any) -> dict[str, Any]:
        """The reply to one request, with `others_cpus` meanwhile; it runs on until `pause`. Raises WorkerError."""
        assert self._process.stdin is not None
        load = LoadWatch(self._process.pid)
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerError(f"it ended; see {self.log}") from None
        reply: dict[str, Any] = json.loads(self._read_line(verb, timeout_s))
        if "error" in reply:
            raise WorkerError(reply["error"], reply["is_absent"])
        return reply | {"others_cpus": load.others_cpus()}

    def pause(self) -> None:
        """Stops it until the next request."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGSTOP)

    def _read_line(self, verb: str, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        stdout, deadline_s = self._process.stdout.fileno(), time.perf_counter() + timeout_s
        while b"\n" not in self._received:
            ready, _, _ = select.select([stdout], [], [], max(0.0, deadline_s - time.perf_counter()))
            if not ready:
                self._process.kill()
                raise WorkerError(f"{verb} took more than {timeout_s:.0f} s")
            data = os.read(stdout, 1 << 16)
            if not data:
                code = self._process.wait()
                raise WorkerError(f"it ended with exit code {code} during {verb}; see {self.log}")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line

    def close(self) -> None:
        """Lets it end, or ends it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.send_signal(signal.SIGCONT)
            self._process.stdin.close()
            self._process.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
