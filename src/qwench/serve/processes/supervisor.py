"""Reads a child process' messages, and restarts it when it dies.

Knows no message but the first one: {"ready": ...} when the child can work, {"failed": reason} when it never will. Its
two subclasses are the clients of the engine and of the text process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import time
from abc import ABC, abstractmethod

from qwench.errors import QwenchError
from qwench.host import mpi_place
from qwench.serve.processes.children import Child
from qwench.serve.processes.wire import LENGTH, Message, pack

logger = logging.getLogger(__name__)

MAX_DELAY_S = 5.0  # between two attempts to start a child that keeps failing
STEADY_S = 30.0  # a child that lived so long is started again at once
STOP_S = 5.0  # a child that is told to stop has so long


class StartError(QwenchError):
    """A child of the server couldn't start: the model can't be loaded."""


class Supervised(ABC):
    """Keeps a child running, from `start` to `stop`, and handles its messages."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._was_killed = False
        self.num_restarts = 0

    @abstractmethod
    def on_ready(self, info: Message) -> None:
        """The child can work; info: of its ready message."""

    @abstractmethod
    def on_message(self, message: Message) -> None:
        """Any later message."""

    @abstractmethod
    def on_down(self) -> None:
        """The child is gone with its work; another is about to be started."""

    async def start(self) -> None:
        """Starts the child, if it isn't, waits until it is ready and supervises it from then on. Raises StartError."""
        self._child.start()
        self._was_killed = False
        ready = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._supervise(ready))
        self._task.add_done_callback(lambda task: ready.cancel())  # stopped before it was ready
        await ready

    async def end(self) -> None:
        """Waits until the child died and can't be started again, as one of several hosts can't. Raises StartError."""
        assert self._task is not None
        await asyncio.shield(self._task)

    async def _supervise(self, ready: asyncio.Future[None]) -> None:
        delay = 0.0
        while True:
            started = time.monotonic()
            try:
                reason = await self._listen(ready)
            except Exception:  # a bug in a handler must not leave the server without its child
                logger.exception("while listening to %s", self._child.title)
                reason = "it sent a message that can't be handled"
            self._close()
            self.on_down()
            if not ready.done():
                ready.set_exception(StartError(reason))
                return
            if mpi_place()[1] > 1:
                raise StartError(f"{reason}; hosts can't be joined anew: start mpiexec again")
            if self._was_killed:
                self._was_killed = False
            else:
                delay = 0.0 if time.monotonic() - started > STEADY_S else min(2 * delay + 0.1, MAX_DELAY_S)
                logger.error("%s died (%s); starting it again in %.1f s", self._child.title, reason, delay)
                await asyncio.sleep(delay)
            self._child.start()
            self.num_restarts += 1

    async def _listen(self, ready: asyncio.Future[None]) -> str:
        """Handles one child's messages; returns why it ended."""
        reader, self._writer = await asyncio.open_connection(sock=self._child.socket)
        while (message := await _receive(reader)) is not None:
            if "failed" in message:
                return str(message["failed"])
            if "ready" in message:
                self.on_ready(message["ready"])
                if not ready.done():
                    ready.set_result(None)
            else:
                self.on_message(message)
        return "it ended without an error message"

    def send(self, message: Message) -> None:
        """To the child, if there is one. Never waits: what isn't sent yet is bounded by what was admitted."""
        if self._writer is not None:
            self._writer.write(pack(message))

    def kill(self) -> None:
        """Ends the child at once; another one is started without delay, since this is no fault of the child."""
        self._was_killed = True
        self._child.process.kill()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._child.end()

    async def stop(self) -> None:
        """Closes the link and waits; kills the child after STOP_S. It can be started again."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._task
            self._task = None
        if self._child.is_started:
            if self._writer is not None:
                self._writer.close()
            else:
                self._child.socket.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._child.process.wait, STOP_S)
        self._close()
        self.on_down()


async def _receive(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None when the child is gone."""
    try:
        header = await reader.readexactly(LENGTH.size)
        body = await reader.readexactly(LENGTH.unpack(header)[0])
    except (asyncio.IncompleteReadError, OSError):
        return None
    message: Message = json.loads(body)
    return message
