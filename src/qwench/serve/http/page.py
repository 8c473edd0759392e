"""The page at `/`: chat in a browser. Plain files, sent as they are in `ui/`, that need nothing from elsewhere.

The page is a client of the same API as any other. What it takes from others lies in `ui/vendor/`, brought there by
`make vendor`. Called by app.py; guard.py asks for a key before, as everywhere.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from starlette.responses import Response

from qwench.serve.failures import ApiError

FOLDER = Path(__file__).parent / "ui"

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
# The browser runs no script and talks to no server but ours, whatever a model writes; and no string becomes a part of
# the page but by way of DOMPurify.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
    "vary": "accept-encoding",
}


def _files() -> dict[str, Path]:
    """What is served, by its path."""
    found = (file for file in FOLDER.rglob("*") if file.suffix in _KINDS and file.is_file())
    files = {f"/ui/{file.relative_to(FOLDER).as_posix()}": file for file in found}
    return {"/": files.pop("/ui/index.html"), **files}


_FILES = _files()
PATHS = frozenset(_FILES)


@cache
def _content(file: Path) -> tuple[bytes, bytes, str]:
    """The file's bytes, the same compressed, and what changes with them."""
    content = file.read_bytes()
    return content, gzip.compress(content, mtime=0), f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def page_file(path: str, headers: Mapping[str, str]) -> Response:
    """One of PATHS, or a 304 for a browser that has it already. headers: of the request. Raises ApiError 404."""
    if path not in _FILES:
        raise ApiError(404, f"there is no {path} here")
    file = _FILES[path]
    plain, compressed, tag = _content(file)
    answer = _HEADERS | {"etag": tag}
    if headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=answer)
    if "gzip" in headers.get("accept-encoding", "") and file.suffix != ".woff2":
        return Response(compressed, media_type=_KINDS[file.suffix], headers=answer | {"content-encoding": "gzip"})
    return Response(plain, media_type=_KINDS[file.suffix], headers=answer)
