"""Runs the server: listens, waits for the models' processes, and ends in order. Called by the command line."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import resource
import socket
from collections.abc import Callable, Coroutine, Sequence
from types import FrameType
from typing import Any

import uvicorn

from qwench.errors import ConfigError
from qwench.host import mpi_place
from qwench.serve.http.http_protocol import LimitedProtocol
from qwench.serve.processes.children import Children
from qwench.serve.served_app import ServedApp
from qwench.serve.settings import ServeSettings

FAREWELL_S = 0.3  # for the errors of requests that end with the engine
KEEP_ALIVE_S = 75  # longer than what proxies keep a connection for, so that it's they who close


def serve(settings: ServeSettings, children: Sequence[Children], on_ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT, then lets answers end and returns; the children end with it.

    children: each model's. on_ready: told the server's URL once a request would be answered. Raises ConfigError when it
    can't listen or the keys can't be read, StartError when a model that is to be there can't be loaded.
    """
    try:
        served = ServedApp(settings, children)
        listener = _listen(settings.host, settings.port)
        _allow_many_connections()
        asyncio.run(_serve(settings, served, listener, on_ready))
    finally:
        for own in children:
            own.end()


async def _serve(
    settings: ServeSettings, served: ServedApp, listener: socket.socket, on_ready: Callable[[str], None]
) -> None:
    config = uvicorn.Config(
        served.app, http=LimitedProtocol, ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.drain_s),
    )  # fmt: skip
    gc.collect()
    gc.freeze()  # what was imported is never garbage: going through it again and again took 20 ms each time
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # what clients do wrong is told to them, not to the log
    server = _Server(config)
    listening = asyncio.create_task(server.serve([listener]))
    starting = asyncio.create_task(served.start())
    try:
        await asyncio.wait({listening, starting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            on_ready(_url(listener))
        if mpi_place()[1] > 1:
            await _either(listening, served.end())
        await listening
    finally:
        server.should_exit = server.force_exit = True
        starting.cancel()
        await asyncio.gather(listening, starting, return_exceptions=True)
        await served.stop()


async def _either(listening: asyncio.Task[None], end: Coroutine[Any, Any, None]) -> None:
    """Waits for the first of both. Raises what `end` raises."""
    ending = asyncio.create_task(end)
    try:
        await asyncio.wait({listening, ending}, return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            await asyncio.sleep(FAREWELL_S)
            ending.result()
    finally:
        ending.cancel()


class _Server(uvicorn.Server):
    """Ends in order at the first SIGTERM or SIGINT, at once at the second."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    """Raises ConfigError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # Only where the protocol is named does asyncio send small packets at once (TCP_NODELAY).
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ConfigError(
            f"can't listen at {host} port {port}: {error.strerror}; choose others with --host, --port"
        ) from None
    listener.listen(2048)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _allow_many_connections() -> None:
    """As many open files as the system lets this process have; often the default is but a thousand."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
