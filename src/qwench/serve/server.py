"""Runs the server: listens, waits for the models' processes, and ends in order. Called by the command line."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import resource
import socket
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn
from starlette.routing import Route
from starlette.types import ASGIApp

from qwench.errors import ConfigError
from qwench.host import mpi_place
from qwench.serve.anthropic import routes as anthropic
from qwench.serve.anthropic.errors import AnthropicErrors
from qwench.serve.app import make_app
from qwench.serve.http.cors import Cors
from qwench.serve.http.error_forms import ErrorForms
from qwench.serve.http.guard import Guard
from qwench.serve.http.http_protocol import LimitedProtocol
from qwench.serve.http.keys import ApiKeys
from qwench.serve.http.paths import RightPaths
from qwench.serve.models import Models
from qwench.serve.ollama import routes as ollama
from qwench.serve.ollama.errors import OllamaErrors
from qwench.serve.openai.routes import ANSWER_PATHS, BODY_PATHS
from qwench.serve.pooling.routes import ANSWER_PATHS as POOLING_PATHS
from qwench.serve.processes.children import Children
from qwench.serve.service import Service
from qwench.serve.settings import ServeSettings

FAREWELL_S = 0.3  # for the errors of requests that end with the engine
KEEP_ALIVE_S = 75  # longer than what proxies keep a connection for, so that it's they who close


def serve(settings: ServeSettings, children: Sequence[Children], on_ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT, then lets answers end and returns; the children end with it.

    children: each model's. on_ready: told the server's URL once a request would be answered. Raises ConfigError when it
    can't listen or the keys can't be read, StartError when a model that is to be there can't be loaded.
    """
    try:
        keys = None if settings.api_key_file is None else ApiKeys.from_file(settings.api_key_file)
        listener = _listen(settings.host, settings.port)
        _allow_many_connections()
        services = [Service.of(settings, model, own) for model, own in zip(settings.models, children, strict=True)]
        asyncio.run(_serve(settings, keys, services, listener, on_ready))
    finally:
        for own in children:
            own.end()


async def _serve(
    settings: ServeSettings, keys: ApiKeys | None, services: Sequence[Service], listener: socket.socket,
    on_ready: Callable[[str], None],
) -> None:  # fmt: skip
    models = Models(settings, services)
    routes = make_app(models)
    app: ASGIApp = Guard(
        routes, keys=keys, hosts=settings.accepted_hosts,
        body_paths=BODY_PATHS | POOLING_PATHS | anthropic.BODY_PATHS | ollama.BODY_PATHS,
        answer_paths=ANSWER_PATHS | POOLING_PATHS | anthropic.ANSWER_PATHS | ollama.ANSWER_PATHS,
        loose_paths=ollama.BODY_PATHS, check_room=models.check_room, max_body_bytes=models.max_body_bytes,
    )  # fmt: skip
    app = ErrorForms(app, {anthropic.MESSAGES: AnthropicErrors, ollama.START: OllamaErrors})
    app = RightPaths(app, [route.path for route in routes.routes if isinstance(route, Route)])
    if settings.cors_origins:
        app = Cors(app, settings.cors_origins)
    config = uvicorn.Config(
        app, http=LimitedProtocol, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
        proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=math.ceil(settings.drain_s),
    )  # fmt: skip
    gc.collect()
    gc.freeze()  # what was imported is never garbage: going through it again and again took 20 ms each time
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # what clients do wrong is told to them, not to the log
    server = _Server(config)
    listening = asyncio.create_task(server.serve([listener]))
    starting = asyncio.create_task(models.loader.start())
    try:
        await asyncio.wait({listening, starting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            on_ready(_url(listener))
        ends = [asyncio.create_task(service.engine.end()) for service in services if mpi_place()[1] > 1]
        await asyncio.wait({listening, *ends}, return_when=asyncio.FIRST_COMPLETED)
        if not listening.done():
            await asyncio.sleep(FAREWELL_S)
            await asyncio.gather(*ends)
        for end in ends:
            end.cancel()
        await listening
    finally:
        server.should_exit = server.force_exit = True
        starting.cancel()
        await asyncio.gather(listening, starting, return_exceptions=True)
        await models.loader.stop()


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
