"""Starts `qwench serve` as a user would, and stops it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from qwench import QwenchConfig, compile_checkpoint

MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"
START_S = 180.0  # other work may be going on


def tiny_model(folder: Path, **options: Any) -> Path:
    """The default model, compiled into `folder`."""
    compile_checkpoint(MODEL, folder, QwenchConfig(**{"weights": "int8", "batch_size": 8, **options}))
    return folder


def short_model(folder: Path) -> Path:
    """The same with a context of 64 tokens, which are soon generated whatever a request says."""
    return tiny_model(folder, max_seq_len=64)


def sample(metrics: str, name: str) -> float:
    """The value of a sample in the text of /metrics, such as qwench_requests_running."""
    match = re.search(rf"^{re.escape(name)} (\S+)$", metrics, re.MULTILINE)
    assert match, metrics
    return float(match[1])


def cpu_s(pid: int) -> float:
    """Seconds of processors that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def busy_cpu_s() -> float:
    """Seconds that all processors of the machine together were not idle, for its guests' or its host's sake."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class ServerProcess:
    """A running server. log: what it wrote to stderr so far."""

    def __init__(self, model: Path | str, *options: str) -> None:
        command = [sys.executable, "-m", "qwench.cli.main", "serve", str(model), *options, "--port", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self.url = ""
        self._listening = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if match := re.search(r"serving .* at (http://\S+),", line):
                self.url = match[1]
                self._listening.set()
        self._listening.set()

    def wait_until_ready(self) -> None:
        assert self._listening.wait(START_S) and self.url, "".join(self.log)

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def children(self, module: str, of: str = "") -> list[int]:
        """The process ids of the engine_processes or the text_processes, of the model in the folder `of`."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        lines = {int(child): Path(f"/proc/{child}/cmdline").read_text() for child in children}
        return [child for child, line in lines.items() if module in line and f'{of}"' in line]

    def child(self, module: str, of: str = "") -> int:
        """The only one of them."""
        [child] = self.children(module, of)
        return child

    def metric(self, name: str) -> float:
        """As `sample`, of now."""
        return sample(httpx.get(f"{self.url}/metrics", timeout=30).text, name)

    def is_idle(self) -> bool:
        return self.metric("qwench_requests_running") == self.metric("qwench_answers_open") == 0

    def resident_mib(self) -> dict[str, float]:
        """Memory of each of the three processes, as the system counts it now."""
        page = os.sysconf("SC_PAGESIZE") / (1 << 20)
        return {
            name: page * int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for name, pid in self.pids().items()
        }

    def pids(self) -> dict[str, int]:
        """Of the three processes."""
        return {"http": self.process.pid, "engine": self.child("engine_process"), "text": self.child("text_process")}

    def cpu_s(self) -> float:
        """Seconds of processors that they have used, in hundredths: what took long also on a busy machine."""
        return sum(map(cpu_s, self.pids().values()))

    def stop(self, timeout_s: float = 30) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


@contextlib.contextmanager
def running_server(model: Path | str, *options: str) -> Iterator[ServerProcess]:
    server = ServerProcess(model, *options)
    try:
        server.wait_until_ready()
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()


def wait_for(condition: object, timeout_s: float = 20.0, every_s: float = 0.02) -> float:
    """Polls until `condition()` holds; the seconds that took."""
    start = time.monotonic()
    while not condition():  # type: ignore[operator]
        assert time.monotonic() - start < timeout_s, "it didn't happen"
        time.sleep(every_s)
    return time.monotonic() - start
