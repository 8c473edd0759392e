"""The page at `/`: chat in a browser. Plain files, sent as they are in `ui/`, that need nothing from elsewhere.

The page is a client of the same API as any other. Called by app.py; guard.py asks for a key before, as everywhere.
"""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response

from qwench.serve.failures import ApiError

FOLDER = Path(__file__).parent / "ui"
PATHS = frozenset(("/", "/ui/style.css", "/ui/chat.js", "/ui/stream.js", "/ui/tokens.js", "/ui/gauges.js"))

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
# The browser runs no script and talks to no server but ours, whatever a model writes.
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page_file(path: str) -> Response:
    """One of PATHS. Raises ApiError 404."""
    if path not in PATHS:
        raise ApiError(404, f"there is no {path} here")
    file = FOLDER / (path.removeprefix("/ui/") if path != "/" else "index.html")
    return Response(file.read_bytes(), media_type=_KINDS[file.suffix], headers=_HEADERS)
