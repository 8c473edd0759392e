"""uvicorn's HTTP protocol, with what it lacks against clients that are slow or send too much.

A request's head must come within a time and a size; a response must be read, a little at least, within a time; the
body of a refused request is read and thrown away, within limits too, since a client whose connection is closed
meanwhile would never see the refusal. HTTP/1.0 gets no chunks. What isn't HTTP is answered as everything else, with
OpenAI's error JSON. Limits of bodies that are read are in guard.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from qwench.serve.failures import ApiError

MAX_HEAD_BYTES = 32 << 10
HEAD_S = 10.0  # from a connection's opening, or a request's first byte, to the end of its head
MAX_REST_BYTES = 16 << 20  # of a body whose request was answered without it,
REST_S = 10.0  # and how long it may take
UNREAD_S = 30.0  # a client that takes nothing for so long has gone
MAX_CONNECTIONS = 4096
NO_LINGERING = struct.pack("ii", 1, 0)

NOT_HTTP = ApiError.bad_request("this isn't an HTTP request")
HEAD_TOO_LONG = ApiError(431, f"the head of the request is longer than {MAX_HEAD_BYTES} bytes")
HEAD_TOO_SLOW = ApiError(408, f"the head of the request didn't come within {HEAD_S:g} s")
TOO_MANY = ApiError.unavailable(f"there are {MAX_CONNECTIONS} connections already")


def _send_without_chunks(cycle: RequestResponseCycle) -> None:
    """HTTP/1.0 knows no chunks, which uvicorn sends all the same: a stream lasts until the connection closes."""
    send = cycle.send

    async def send_as_it_is(message: ASGISendEvent) -> None:
        if message["type"] == "http.response.body":
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    cycle.chunked_encoding = False
    cycle.send = send_as_it_is  # type: ignore[method-assign]


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_bytes = self._field_bytes = 0  # of a head that isn't complete: as received, and of its fields
        self._is_in_head, self._is_in_body = True, False
        self._rest_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._rest_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_head()
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(TOO_MANY)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._rest_timer, self._write_timer):
            self._cancel(timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(HEAD_TOO_LONG)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._is_in_head:  # another request on this connection
            self._start_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._field_bytes += len(name) + len(value)
        if self._field_bytes > MAX_HEAD_BYTES:
            self._refuse(HEAD_TOO_LONG)
            raise ValueError("the head is too long")  # stops the parser

    def on_headers_complete(self) -> None:
        self._is_in_head, self._is_in_body, self._rest_bytes = False, True, 0
        self._cancel(self._head_timer)
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            _send_without_chunks(self.cycle)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.cycle.response_complete:
            self._rest_bytes += len(body)
            if self._rest_bytes > MAX_REST_BYTES:
                self._drop()

    def on_message_complete(self) -> None:
        self._is_in_body = False
        self._cancel(self._rest_timer)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_in_body:
            self._rest_timer = self.loop.call_later(REST_S, self._drop)

    def _start_head(self) -> None:
        self._is_in_head, self._head_bytes, self._field_bytes = True, 0, 0
        self._head_timer = self.loop.call_later(HEAD_S, self._refuse, HEAD_TOO_SLOW)

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for what its parser can't read."""
        self._refuse(NOT_HTTP)

    def _refuse(self, error: ApiError) -> None:
        if self.transport.is_closing():
            return
        body = error.body()
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[error.status_code] + head + body)
        self._close()

    def _close(self) -> None:
        """Closes once all is written, but doesn't wait for ever for a client that doesn't read."""
        self.transport.close()
        if self.transport.get_write_buffer_size() and self._write_timer is None:
            self._write_timer = self.loop.call_later(UNREAD_S, self._drop)

    def _drop(self) -> None:
        """Resets the connection, so that the kernel too forgets what was never read, megabytes perhaps."""
        connection = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGERING)
        self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(UNREAD_S, self._drop)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel(self._write_timer)
        self._write_timer = None

    @staticmethod
    def _cancel(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
