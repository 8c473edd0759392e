"""Cross-origin requests: which pages of other origins a browser lets use the server. None by default.

Plain ASGI around guard.py: a preflight has no key, and a refusal must be readable to the page as well. Keys travel in
the Authorization header, so no cookies are ever allowed. Knows no route.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwench.serve.http.json_body import IGNORED_HEADER

ANY = "*"
MAX_AGE_S = 7200  # browsers forget it sooner
METHODS = "GET, HEAD, POST, OPTIONS"
EXPOSED = f"{IGNORED_HEADER}, retry-after"


class Cors:
    """ASGI middleware. origins: at least one, such as https://chat.example.com, or *."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app, self._origins = app, frozenset(origin.lower().rstrip("/") for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin = headers.get("origin", "")
        if not self._allows(origin):
            await self._app(scope, receive, send)
        elif scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await send({"type": "http.response.start", "status": 204, "headers": self._preflight(origin, headers).raw})
            await send({"type": "http.response.body", "body": b""})
        else:

            async def send_with_origin(message: Message) -> None:
                if message["type"] == "http.response.start":
                    added = MutableHeaders(scope=message)
                    added.update(self._of_origin(origin))
                    added["access-control-expose-headers"] = EXPOSED
                await send(message)

            await self._app(scope, receive, send_with_origin)

    def _allows(self, origin: str) -> bool:
        return bool(origin) and (ANY in self._origins or origin.lower() in self._origins)

    def _of_origin(self, origin: str) -> dict[str, str]:
        if ANY in self._origins:
            return {"access-control-allow-origin": ANY}
        return {"access-control-allow-origin": origin, "vary": "Origin"}

    def _preflight(self, origin: str, headers: Headers) -> MutableHeaders:
        """Any header is allowed: clients send some of their own, and the server reads but two."""
        answer = MutableHeaders(self._of_origin(origin))
        answer["access-control-allow-methods"] = METHODS
        answer["access-control-allow-headers"] = headers.get("access-control-request-headers", "authorization")
        answer["access-control-max-age"] = str(MAX_AGE_S)
        if headers.get("access-control-request-private-network") == "true":
            answer["access-control-allow-private-network"] = "true"
        return answer
