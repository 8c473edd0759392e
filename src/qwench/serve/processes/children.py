"""A model's two child processes: how the parent launches them, and with which options.

Imports next to nothing, so that the model is being loaded while the parent still imports FastAPI. Called by the command
line; supervisor.py listens to them.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
from dataclasses import dataclass

from qwench.serve.models.model_settings import ModelSettings
from qwench.serve.processes.wire import Message
from qwench.serve.settings import ServeSettings


class Child:
    """A process `python -m module FD OPTIONS`, started as often as need be, and the parent's end of its socket.

    The child sees the end of the socket when the parent is gone, however that ended. title: what the log calls it.
    options: may change between two starts.
    """

    socket: socket.socket
    process: subprocess.Popen[bytes]

    def __init__(self, module: str, options: Message, of_model: str = "") -> None:
        self.title, self.options, self._module = module + of_model, options, module
        self.is_started = False

    def start(self) -> None:
        """A new process, unless there is one that was not ended."""
        if self.is_started:
            return
        self.socket, theirs = socket.socketpair()
        with theirs:
            # In a session of its own: Ctrl-C at the terminal is for the parent, which lets streams end first.
            self.process = subprocess.Popen(
                [sys.executable, "-m", self._module, str(theirs.fileno()), json.dumps(self.options)],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self.is_started = True

    def end(self) -> None:
        """Kills it, if it hasn't ended."""
        if self.is_started:
            self.is_started = False
            self.socket.close()
            self.process.kill()
            self.process.wait()


@dataclass(frozen=True)
class Children:
    """engine: owns the model. text: renders templates and tokenises."""

    engine: Child
    text: Child

    @classmethod
    def launch(cls, settings: ServeSettings) -> list[Children]:
        """Of each model; started are those that are to be there from the start."""
        children = [cls.of(settings, model) for model in settings.models]
        for model, own in zip(settings.models, children, strict=True):
            if model.starts:
                own.start()
        return children

    @classmethod
    def of(cls, settings: ServeSettings, model: ModelSettings) -> Children:
        """Not started yet."""
        config = model.config if model.share is None else dataclasses.replace(model.config, memory=model.share)
        options = {
            "model": str(model.folder), "config": config.to_dict(), "num_threads": settings.num_threads,
            "enable_prefix_caching": settings.enable_prefix_caching,
            "lora": {name: str(path) for name, path in model.lora.items()},
            "draft": model.draft,
            "prefix_dir": None if model.prefix_dir is None else str(model.prefix_dir),
        }  # fmt: skip
        of_model = "" if len(settings.models) == 1 else f" of {model.names[0]}"
        return cls(
            Child("qwench.serve.processes.engine_process", options, of_model),
            Child("qwench.serve.processes.text_process", {"folder": str(model.folder)}, of_model),
        )

    def start(self) -> None:
        """Both, unless they are."""
        self.engine.start()
        self.text.start()

    def end(self) -> None:
        """Kills both, if they haven't ended."""
        self.engine.end()
        self.text.end()
