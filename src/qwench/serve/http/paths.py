"""Half-right URLs: the path of a request as a route has it, so that whoever forgot /v1 or added a slash is answered.

Nobody is redirected: a client that follows one may send its request anew as a GET. HEAD is GET without its body, which
uvicorn leaves out. Plain ASGI, around guard.py, which goes by paths. Knows the routes of the app, not what they do.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

VERSION = "/v1"
ALIASES = {"/healthz": "/health", "/livez": "/health", "/ping": "/health", "/readyz": "/ready"}
PREFIXES = ("/openai", "/anthropic", "/api")  # of base URLs that gateways have, before /v1


class RightPaths:
    """ASGI middleware. paths: of the routes; one may end with a parameter, as /v1/models/{name:path} does."""

    def __init__(self, app: ASGIApp, paths: Collection[str]) -> None:
        self._app = app
        self._paths = frozenset(path for path in paths if "{" not in path)
        self._beginnings = tuple(path.partition("{")[0] for path in paths if "{" in path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            scope = {**scope, "path": self.right(scope["path"]), "method": method}
        await self._app(scope, receive, send)

    def right(self, path: str) -> str:
        """The path of the route that is meant; as it is where there's none."""
        if self._exists(path):
            return path
        plain = re.sub("/+", "/", path).rstrip("/") or "/"
        plain = ALIASES.get(plain, plain)
        for prefix in PREFIXES:
            plain = plain.removeprefix(prefix) if plain.startswith(prefix + VERSION) else plain
        while plain.startswith(VERSION * 2):
            plain = plain.removeprefix(VERSION)
        for meant in (plain, VERSION + plain, plain.removeprefix(VERSION)):
            if self._exists(meant):
                return meant
        return path

    def _exists(self, path: str) -> bool:
        is_exact = path in self._paths
        return is_exact or (not path.endswith("/") and path.startswith(self._beginnings))
