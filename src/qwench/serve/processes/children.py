"""The server's two child processes: how the parent launches them, and with which options.

Imports next to nothing, so that the model is being loaded while the parent still imports FastAPI. Called by the command
line; supervisor.py listens to them.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import dataclass

from qwench.serve.processes.wire import Message
from qwench.serve.settings import ServeSettings


class Child:
    """One process `python -m module FD OPTIONS`, and the parent's end of its socket.

    The child sees the end of the socket when the parent is gone, however that ended.
    """

    def __init__(self, module: str, options: Message) -> None:
        self.module, self._options = module, options
        self.socket, theirs = socket.socketpair()
        with theirs:
            # In a session of its own: Ctrl-C at the terminal is for the parent, which lets streams end first.
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno()), json.dumps(options)],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def again(self) -> Child:
        """A new process of the same kind."""
        return Child(self.module, self._options)

    def end(self) -> None:
        """Kills it, if it hasn't ended."""
        self.socket.close()
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Children:
    """engine: owns the model. text: renders templates and tokenises."""

    engine: Child
    text: Child

    @classmethod
    def launch(cls, settings: ServeSettings) -> Children:
        options = {
            "model": str(settings.model), "config": settings.config.to_dict(), "num_threads": settings.num_threads,
            "enable_prefix_caching": settings.enable_prefix_caching,
            "lora": {name: str(path) for name, path in settings.lora.items()},
            "draft": settings.draft,
            "prefix_dir": None if settings.prefix_dir is None else str(settings.prefix_dir),
        }  # fmt: skip
        return cls(
            Child("qwench.serve.processes.engine_process", options),
            Child("qwench.serve.processes.text_process", {"folder": str(settings.model)}),
        )

    def end(self) -> None:
        """Kills both, if they haven't ended."""
        self.engine.end()
        self.text.end()
