"""The way in: reads a request whole, and has a replica answer it, another one if the first fails before it said a word.

Checks keys, hosts and sizes as the server does, before it reads a body. Made by Ray Serve, whose proxies call it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwench.replicas.conversation import conversation_of
from qwench.replicas.forwarding import ForwardedRequest, received
from qwench.replicas.metrics import merged
from qwench.serve.failures import ApiError, form_of
from qwench.serve.http.cors import Cors
from qwench.serve.http.error_forms import ErrorForms
from qwench.serve.http.guard import OPEN_PATHS, Guard
from qwench.serve.http.keys import ApiKeys
from qwench.serve.http.paths import RightPaths
from qwench.serve.http.streaming import event, json_line
from qwench.serve.served_app import ERROR_FORMS

logger = logging.getLogger(__name__)

MAX_TRIES = 3
WAIT_S = 60.0  # for a replica that takes the request: none is there while all are being started
MAX_BODY_BYTES = 64 << 20  # the replica, which knows its model, refuses much smaller ones
BUSY = (429, 503)  # another replica may have room, or an engine


class Ingress:
    """replicas: a handle to the deployment of Replica. options: of `qwench serve`, from which it takes what concerns
    HTTP."""

    def __init__(self, replicas: Any, options: Namespace) -> None:
        self._replicas = replicas
        self._asgi = self._guarded(options)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._asgi

    def _guarded(self, options: Namespace) -> ASGIApp:
        """As ServedApp has it. Here keys and sizes are checked before a body is read; what depends on the model is
        checked in the replica."""
        max_body_bytes = options.max_body_bytes or MAX_BODY_BYTES
        app: ASGIApp = Guard(
            self._forward, keys=None if options.api_key_file is None else ApiKeys.from_file(options.api_key_file),
            hosts=frozenset(map(str.lower, options.allowed_host or ())), body_paths=frozenset(),
            answer_paths=frozenset(), check_room=lambda: None, max_body_bytes=lambda: max_body_bytes,
        )  # fmt: skip
        app = RightPaths(ErrorForms(app, ERROR_FORMS), OPEN_PATHS)
        return Cors(app, options.cors_origin) if options.cors_origin else app

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await Starlette()(scope, receive, send)  # which does nothing when it starts and ends
            return
        reply = _Reply(scope, send)
        try:
            if scope["path"] == "/metrics":
                await self._answer_metrics(scope, receive, send)
                return
            body = await _read(receive)
            request = ForwardedRequest(received(scope), body, conversation_of(body))
            await self._try_replicas(request, reply)  # which Ray cancels when the client leaves
        except ApiError as error:
            await reply.fail(error)

    async def _try_replicas(self, request: ForwardedRequest, reply: _Reply) -> None:
        """Raises ApiError."""
        failure = ApiError.unavailable("no replica is ready; try again")
        for num_left in reversed(range(MAX_TRIES)):
            stream = self._replicas.options(stream=True).answer.remote(request)
            try:
                name = await asyncio.wait_for(stream.__anext__(), WAIT_S)
                request = dataclasses.replace(request, tried=(*request.tried, name))
                if await self._pass_on(stream, reply, is_last=num_left == 0):
                    return
            except asyncio.TimeoutError:
                raise failure from None
            except (RayError, RayServeException) as error:
                logger.warning("a replica failed %s: %s", request.scope["path"], type(error).__name__)
                failure = ApiError.unavailable("the replica died while it worked on this; send the request again")
                if reply.has_begun:
                    raise failure from None
            finally:
                stream.cancel()
        raise failure

    async def _pass_on(self, stream: AsyncIterator[Sequence[Message]], reply: _Reply, *, is_last: bool) -> bool:
        """Whether the client was answered; False if another replica should try it. Raises what Ray raises."""
        async for messages in stream:
            for message in messages:
                if not is_last and message.get("status") in BUSY:
                    return False
                await reply.send(message)
        return True

    async def _answer_metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of all replicas, each with its name."""
        try:
            texts = await self._replicas.broadcast("metrics").results_async(timeout_s=WAIT_S)
        except (RayError, RayServeException, TimeoutError, asyncio.TimeoutError):
            raise ApiError.unavailable("a replica ended meanwhile; try again") from None
        await PlainTextResponse(merged(dict(texts)))(scope, receive, send)


class _Reply:
    """What the client has got so far."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send
        self._kind = b""  # its media type, once it has begun
        self.has_begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            self._kind = dict(message["headers"]).get(b"content-type", b"")
        await self._send(message)

    async def fail(self, error: ApiError) -> None:
        """An answer if there was none, the last event or line in a stream of them; else the connection breaks, so that
        half an answer isn't taken for a whole one."""
        shown = form_of(self._scope).show(error)
        if not self.has_begun:
            await error.response(self._scope)(self._scope, _never, self._send)
        elif self._kind.startswith(b"text/event-stream"):
            await self._send({"type": "http.response.body", "body": event(shown, "error")})
        elif self._kind.startswith(b"application/x-ndjson"):
            await self._send({"type": "http.response.body", "body": json_line(shown)})
        else:
            raise error


async def _never() -> Message:
    raise AssertionError("an error's response reads nothing")


async def _read(receive: Receive) -> bytes:
    """The whole body. Raises ApiError, and CancelledError when the client leaves before it is complete."""
    parts = []
    while (message := await receive())["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
    raise asyncio.CancelledError
