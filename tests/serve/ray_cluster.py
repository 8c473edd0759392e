"""`serve run deploy.ray_serve:app` as a user would start it, in a small cluster that lives and dies with its process:
`python ray_cluster.py PORT`, which reads the arguments of each deployment as a line of JSON and ends with them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
START_S = 240.0  # other work may be going on
DEPLOYED = "qwench is deployed"
OBJECT_STORE_BYTES = 100_000_000


class RayCluster:
    """A running application. url: where Ray's proxy listens."""

    def __init__(self, model: Path, log: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.model, self.url, self._log = str(model), f"http://127.0.0.1:{port}", log
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
        environment.pop("RAY_ADDRESS", None)  # that's somebody's own cluster
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(port)], cwd=ROOT, env=environment, start_new_session=True,
                stdin=subprocess.PIPE, stdout=output, stderr=output,
            )  # fmt: skip
        self.update(*options)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while DEPLOYED not in self.log:  # all replicas; one of them is enough to be ready
            assert self.process.poll() is None and time.monotonic() < deadline, self.log[-4000:]
            time.sleep(0.1)

    def is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/ready", timeout=2).status_code == 200
        return False

    def update(self, *options: str) -> None:
        """As who types `serve run` anew, with other options."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([f"model={self.model}", *options]).encode() + b"\n")
        self.process.stdin.flush()

    def engines(self) -> dict[int, int]:
        """The engine processes, each with the process of its replica."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has just ended
                command = (folder / "cmdline").read_text()
                if "engine_process" in command and self.model in command:
                    found[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        return found

    def processes(self) -> list[str]:
        """Of qwench and of Ray, all that are left."""
        left = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_text()
                is_ours = os.getsid(int(folder.name)) == self.process.pid or self.model in command
                if is_ours and (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    left.append(command)
        return left

    def stop(self) -> None:
        """In order, and by force what doesn't end so."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
            self.process.stdin.close()
            self.process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def running_cluster(model: Path, log: Path, *options: str) -> Iterator[RayCluster]:
    cluster = RayCluster(model, log, *options)
    try:
        cluster.wait_until_ready()
        yield cluster
    finally:
        cluster.stop()


def main() -> None:
    import ray
    from ray import serve
    from ray.serve.scripts import cli

    ray.init(num_cpus=2, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    for line in sys.stdin:
        cli(["run", "--non-blocking", "deploy.ray_serve:app", *json.loads(line)], standalone_mode=False)
        print(DEPLOYED, flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
