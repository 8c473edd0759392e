"""Server-sent events or lines of JSON, and the abort of a generation whose client disconnects.

The routes give it an iterator of events, already encoded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwench.serve.failures import ApiError
from qwench.serve.processes.engine_client import Generation, Piece

DONE = b"data: [DONE]\n\n"
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # proxies must not hold events back


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    """One event. Its JSON has no line breaks, so that it is one line of data."""
    text = _to_json(data)
    return f"event: {name}\ndata: {text}\n\n".encode() if name else f"data: {text}\n\n".encode()


def json_line(data: dict[str, Any]) -> bytes:
    """One line of a stream of JSON objects."""
    return f"{_to_json(data)}\n".encode()


async def pieces_or_silence(generation: Generation, silence_s: float) -> AsyncIterator[list[Piece]]:
    """All there is to come, and an empty list whenever nothing came for so long. Raises ApiError when the engine
    fails."""
    while not generation.is_finished:
        try:
            pieces = await asyncio.wait_for(generation.take(), silence_s)
        except asyncio.TimeoutError:
            pieces = []
        yield pieces


class EventStream(Response):
    """Sends events until they end or the client leaves, which aborts `generation`."""

    def __init__(
        self, events: AsyncIterator[bytes], generation: Generation, media_type: str = "text/event-stream"
    ) -> None:
        super().__init__(headers=HEADERS, media_type=media_type)
        del self.headers["content-length"]
        self._events, self._generation = events, generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with abort_when_gone(receive, self._generation):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for data in self._events:
                    if data:  # a step may add no text that can be shown yet
                        await send({"type": "http.response.body", "body": data, "more_body": True})
            except ApiError as error:
                await send({"type": "http.response.body", "body": event(error.to_dict()), "more_body": True})
            await send({"type": "http.response.body", "body": b""})


@contextlib.asynccontextmanager
async def abort_when_gone(receive: Receive, generation: Generation) -> AsyncIterator[None]:
    """Aborts the generation as soon as the client disconnects, and however the body ends."""
    watcher = asyncio.create_task(_watch(receive, generation))
    try:
        yield
    finally:
        watcher.cancel()
        generation.abort()


async def _watch(receive: Receive, generation: Generation) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    generation.abort()
