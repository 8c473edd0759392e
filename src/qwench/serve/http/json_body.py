"""Bodies read as strict JSON: no NaN, no half surrogate pairs (which no answer could repeat), nesting up to 200. A byte
order mark before them is left aside. What of them has no effect is named in the answer's head, and once in the log.

FastAPI would use Python's parser, which takes all of these. Knows no schema. Used by app.py for every route.
"""

from __future__ import annotations

import codecs
import json
import logging
import re
from collections.abc import Callable, Coroutine
from typing import Any

import pydantic_core
from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from qwench.serve.protocol.validation.reading import reading

logger = logging.getLogger(__name__)

IGNORED_HEADER = "x-qwench-ignored"
MAX_HEADER_NAMES, MAX_LOGGED_NAMES = 32, 256


def route_class(*, is_strict: bool) -> type[APIRoute]:
    """Of routes whose requests are StrictRequests. is_strict: what has no effect is refused."""
    logged: set[str] = set()

    class StrictRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_strictly(request: Request) -> Response:
                with reading(is_strict=is_strict) as what_is_read:
                    response = await handle(StrictRequest(request.scope, request.receive))
                if what_is_read.ignored:
                    names = [_printable(name) for name in what_is_read.ignored]
                    response.headers[IGNORED_HEADER] = ", ".join(names[:MAX_HEADER_NAMES])
                    _log_once(names, logged)
                return response

            return handle_strictly

    return StrictRoute


def _printable(name: str) -> str:
    """As it can stand in a head and in a log."""
    return re.sub(r"[^\w.\[\]-]", "?", name, flags=re.ASCII)


def _log_once(names: list[str], logged: set[str]) -> None:
    for name in names:
        if name not in logged and len(logged) < MAX_LOGGED_NAMES:
            logged.add(name)
            logger.warning("requests have %s, which has no effect here; --strict refuses them", name)


class StrictRequest(Request):
    """A request with another parser for its body."""

    async def json(self) -> Any:
        """Raises JSONDecodeError, as FastAPI expects."""
        body = (await self.body()).removeprefix(codecs.BOM_UTF8)  # editors and shells of Windows write it
        try:
            return pydantic_core.from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from None
