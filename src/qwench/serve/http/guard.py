"""What every request must pass before an endpoint sees it: the Host header, the key, room in the queue, and a body of
the right kind, size and speed.

Plain ASGI, because streams go through it. Knows which paths are open and which make answers, not what they do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwench.serve.failures import ApiError
from qwench.serve.http.keys import ApiKeys
from qwench.serve.http.page import PATHS as PAGE_PATHS

logger = logging.getLogger(__name__)

KEY_HEADERS = (b"authorization", b"x-api-key")
OPEN_PATHS = frozenset(("/health", "/ready"))  # without a key
BODY_S = 30.0  # from the end of the head to the end of the body
MAX_BODIES_BYTES = 256 << 20  # of all requests together that are being read or answered


class Guard:
    """ASGI middleware. body_paths: take JSON. loose_paths: among them, take it by any other name too, as curl sends it,
    if no page of the web can have sent it. check_room: raises ApiError when the queue has no place for a request
    to one of `answer_paths`, which are among them. max_body_bytes: asked for each request, because it depends on a
    model that may not be loaded."""

    def __init__(
        self, app: ASGIApp, *, keys: ApiKeys | None, hosts: frozenset[str], body_paths: frozenset[str],
        answer_paths: frozenset[str], loose_paths: frozenset[str] = frozenset(), check_room: Callable[[], None],
        max_body_bytes: Callable[[], int],
    ) -> None:  # fmt: skip
        self._app, self._keys, self._hosts = app, keys, hosts
        self._body_paths, self._answer_paths, self._loose_paths = body_paths, answer_paths, loose_paths
        self._check_room, self._max_body_bytes = check_room, max_body_bytes
        self._bodies_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] in self._loose_paths and not _is_of_a_page(Headers(scope=scope)):
            scope = _with_json(scope)
        headers = Headers(scope=scope)
        try:
            self._check(scope, headers)
        except ApiError as error:
            await error.response(scope)(scope, receive, send)
            return
        body = _Body(receive, self._max_body_bytes(), self)
        try:
            await self._app(scope, body.receive, send)
        except Exception as error:  # the app has answered it with a 500 already
            logger.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
        finally:
            self._bodies_bytes -= body.num_bytes

    def _check(self, scope: Scope, headers: Headers) -> None:
        if self._hosts and _host_name(headers) not in self._hosts and not _is_without_hosts(scope, headers):
            raise ApiError(421, "this server isn't meant for that Host; see --allowed-host", code="wrong_host")
        if scope["path"] in OPEN_PATHS:
            return
        if self._keys is not None and not self._keys.accepts(*_credentials(scope)):
            # A browser that opens the page asks its user then, and takes the password for all the page asks for.
            hint = {"www-authenticate": 'Basic realm="qwench"' if scope["path"] in PAGE_PATHS else "Bearer"}
            raise ApiError(
                401, "give an API key of this server as Authorization: Bearer KEY or as x-api-key: KEY",
                code="invalid_api_key",
                headers=hint,
            )  # fmt: skip
        if scope["method"] == "POST" and scope["path"] in self._body_paths:
            self._check_body(headers)
            if scope["path"] in self._answer_paths:
                self._check_room()

    def _check_body(self, headers: Headers) -> None:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, "the body must be JSON, with Content-Type: application/json")
        if (coding := headers.get("content-encoding", "identity").strip().lower()) != "identity":
            message = f"the body has Content-Encoding {coding[:32]!r}; send it as it is"
            raise ApiError(415, message, headers={"accept-encoding": "identity"})
        if int(headers.get("content-length", "0")) > self._max_body_bytes():
            raise body_too_large(self._max_body_bytes())

    def hold(self, num_bytes: int) -> None:
        """Counts bytes of a body, until its request is over. Raises ApiError when all bodies together are too much."""
        if self._bodies_bytes + num_bytes > MAX_BODIES_BYTES:
            raise ApiError.unavailable("too many large requests at once; send this one again")
        self._bodies_bytes += num_bytes


class _Body:
    """A body as it is received; `receive` raises ApiError when it grows too large or takes too long."""

    def __init__(self, receive: Receive, max_bytes: int, guard: Guard) -> None:
        self._receive, self._max_bytes, self._guard = receive, max_bytes, guard
        self._deadline = time.monotonic() + BODY_S
        self._is_complete = False
        self.num_bytes = 0

    async def receive(self) -> Message:
        if self._is_complete:
            return await self._receive()  # waits until the client leaves
        try:
            message = await asyncio.wait_for(self._receive(), self._deadline - time.monotonic())
        except asyncio.TimeoutError:
            raise ApiError(408, f"the body didn't come within {BODY_S:g} s") from None
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            if self.num_bytes + size > self._max_bytes:
                raise body_too_large(self._max_bytes)
            self._guard.hold(size)
            self.num_bytes += size
            self._is_complete = not message.get("more_body", False)
        return message


def body_too_large(max_bytes: int) -> ApiError:
    message = f"the body is larger than {max_bytes} bytes, which is more than this model can use; see --max-body-bytes"
    return ApiError(413, message)


def _is_of_a_page(headers: Headers) -> bool:
    """Whether a browser may have sent the request for a page, of whatever origin: it says so with each POST."""
    return "origin" in headers or "referer" in headers or any(name.startswith("sec-") for name in headers)


def _with_json(scope: Scope) -> Scope:
    kept = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    return {**scope, "headers": [*kept, (b"content-type", b"application/json")]}


def _credentials(scope: Scope) -> tuple[bytes, bytes]:
    """The headers that may hold a key: Authorization, and Anthropic's x-api-key."""
    given = [b",".join(value for name, value in scope["headers"] if name == key) for key in KEY_HEADERS]
    return given[0], given[1]


def _is_without_hosts(scope: Scope, headers: Headers) -> bool:
    """HTTP/1.0, which health checks of proxies speak, knows no Host; every browser sends one."""
    return scope["http_version"] == "1.0" and "host" not in headers


def _host_name(headers: Headers) -> str:
    """The name in the Host header without its port; "" unless there is exactly one."""
    values = headers.getlist("host")
    if len(values) != 1:
        return ""
    host = values[0].strip().lower()
    if host.startswith("["):
        name, bracket, _ = host[1:].partition("]")
        return name if bracket else ""
    return host.partition(":")[0]
