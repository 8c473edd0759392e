"""Clients that take their time, and the minutes it takes to be sure of what becomes of them."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from server_process import ServerProcess, running_server, wait_for

pytestmark = pytest.mark.slow

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def own(artifact: Path) -> Iterator[ServerProcess]:
    with running_server(artifact, "--threads", "1") as server:
        yield server


def connect(server: ServerProcess) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=90)


def read_all(connection: socket.socket) -> None:
    while connection.recv(1 << 20):
        pass


def trickle(connection: socket.socket, data: bytes, every_s: float) -> tuple[bytes, float]:
    """Sends byte after byte until there is an answer; the answer, and after how long it came."""
    start = time.monotonic()
    connection.settimeout(every_s)
    for byte in data:
        connection.sendall(bytes([byte]))
        try:
            return connection.recv(65536), time.monotonic() - start
        except TimeoutError:
            pass
    raise AssertionError("there was no answer")


def test_a_head_that_trickles(own: ServerProcess) -> None:
    with connect(own) as connection:
        answer, taken = trickle(connection, b"GET /health HTTP/1.1\r\nX: " + b"a" * 1000, 0.1)
    assert answer.startswith(b"HTTP/1.1 408") and 9 < taken < 15


def test_a_connection_that_says_nothing(own: ServerProcess) -> None:
    with connect(own) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_body_that_trickles(own: ServerProcess) -> None:
    with connect(own) as connection:
        connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
        answer, taken = trickle(connection, b"a" * 1000, 0.1)
    assert answer.startswith(b"HTTP/1.1 408") and 29 < taken < 40


def test_a_refused_body_that_goes_on_and_on(own: ServerProcess) -> None:
    with connect(own) as connection:
        connection.sendall(HEAD.replace(b"json", b"xml") + b"Content-Length: 10000000\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 415")
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - start < 30:
                connection.sendall(b"a")
                time.sleep(0.1)
        assert 9 < time.monotonic() - start < 15


def test_a_client_that_never_reads_is_disconnected(own: ServerProcess) -> None:
    wish = {"prompt": "a", "stream": True, "logprobs": 20, "n": 8, "max_tokens": 1500, "ignore_eos": True}
    body = json.dumps(wish).encode()
    with connect(own) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_for(lambda: own.metric("qwench_requests_running") == 8)
        time.sleep(75)  # 30 without a byte taken, however long the answers took
        with pytest.raises(ConnectionError):
            read_all(connection)
    assert own.metric("qwench_answers_open") == 0
    assert httpx.get(f"{own.url}/ready").status_code == 200
