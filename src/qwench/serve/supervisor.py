"""A child process that is started, listened to, and started again when it dies.

Knows no message but the first one: {"ready": ...} when the child can work, {"failed": reason} when it never will. Its
two subclasses are the clients of the engine and of the text process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod

from qwench.errors import QwenchError
from qwench.serve.wire import LENGTH, Message, pack

logger = logging.getLogger(__name__)

MAX_DELAY_S = 5.0  # between two attempts to start a child that keeps failing
STEADY_S = 30.0  # a child that lived so long is started again at once
STOP_S = 5.0  # a child that is told to stop has so long


class StartError(QwenchError):
    """A child of the server couldn't start: the model can't be loaded."""


class Supervised(ABC):
    """Keeps `python -m module FD OPTIONS` alive and passes on what it says.

    `launch` may be called before there is an event loop, so that the child loads while the parent imports.
    """

    def __init__(self, module: str, options: Message) -> None:
        self._module, self._options = module, json.dumps(options)
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._was_killed = False
        self.num_restarts = 0

    @abstractmethod
    def on_ready(self, info: Message) -> None:
        """The child can work; `info` is what it says about itself."""

    @abstractmethod
    def on_message(self, message: Message) -> None:
        """What the child says after that."""

    @abstractmethod
    def on_down(self) -> None:
        """The child is gone, and with it what it was working on. Another one is on its way."""

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def launch(self) -> None:
        """Starts the child. It sees the end of its socket when this process is gone, however that ends."""
        ours, theirs = socket.socketpair()
        with theirs:
            # In a session of its own: Ctrl-C at the terminal is for the parent, which lets streams end first.
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, str(theirs.fileno()), self._options],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self._socket = ours

    async def start(self) -> None:
        """Waits until the child is ready for the first time and supervises it from then on. Raises StartError."""
        ready = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._supervise(ready))
        await ready

    async def _supervise(self, ready: asyncio.Future[None]) -> None:
        delay = 0.0
        while True:
            started = time.monotonic()
            try:
                reason = await self._serve(ready)
            except Exception:  # a bug in a handler must not leave the server without its child
                logger.exception("while listening to %s", self._module)
                reason = "it said what nobody understood"
            self._reap()
            self.on_down()
            if not ready.done():
                ready.set_exception(StartError(reason))
                return
            if self._was_killed:
                self._was_killed = False
            else:
                delay = 0.0 if time.monotonic() - started > STEADY_S else min(2 * delay + 0.1, MAX_DELAY_S)
                logger.error("%s died (%s); starting it again in %.1f s", self._module.split(".")[-1], reason, delay)
                await asyncio.sleep(delay)
            self.num_restarts += 1

    async def _serve(self, ready: asyncio.Future[None]) -> str:
        """One life of the child; returns why it ended."""
        if self._socket is None:
            self.launch()
        assert self._socket is not None
        reader, self._writer = await asyncio.open_connection(sock=self._socket)
        while (message := await _receive(reader)) is not None:
            if "failed" in message:
                return str(message["failed"])
            if "ready" in message:
                self.on_ready(message["ready"])
                if not ready.done():
                    ready.set_result(None)
            else:
                self.on_message(message)
        return "it ended without a word"

    def send(self, message: Message) -> None:
        """To the child, if there is one. Never waits: what isn't sent yet is bounded by what was admitted."""
        if self._writer is not None:
            self._writer.write(pack(message))

    def kill(self) -> None:
        """Ends the child at once; another one is started without delay, since this is no fault of the child."""
        if self._process is not None:
            self._was_killed = True
            self._process.kill()

    def _reap(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._socket = self._writer = None

    async def stop(self) -> None:
        """Ends the child, kindly first."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._task
        if self._writer is not None:
            self._writer.close()
        elif self._socket is not None:
            self._socket.close()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, STOP_S)
        self._reap()


async def _receive(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None when the child is gone."""
    try:
        header = await reader.readexactly(LENGTH.size)
        body = await reader.readexactly(LENGTH.unpack(header)[0])
    except (asyncio.IncompleteReadError, OSError):
        return None
    message: Message = json.loads(body)
    return message
