"""What must not break the server, in short forms: a dead engine, clients that leave or don't read, overload, SIGTERM.

Each test that harms something has a server of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from server_process import START_S, ServerProcess, running_server, wait_for

LONG = {"prompt": "Once upon a time", "max_tokens": 1500, "ignore_eos": True, "temperature": 1.0}


@pytest.fixture(scope="module")
def fragile(artifact: Path) -> Iterator[ServerProcess]:
    """A server that these tests may harm, as long as it comes back."""
    with running_server(artifact, "--threads", "1", "--max-queued", "4") as server:
        yield server


def test_the_engine_is_killed_under_load(fragile: ServerProcess) -> None:
    async def ask(http: httpx.AsyncClient, stream: bool) -> str:
        return (await http.post("/v1/completions", json={**LONG, "stream": stream})).text

    async def run() -> list[str]:
        async with httpx.AsyncClient(base_url=fragile.url, timeout=60) as http:
            asks = [asyncio.create_task(ask(http, i % 2 == 0)) for i in range(8)]
            await asyncio.to_thread(wait_for, lambda: fragile.metric("qwench_requests_running") == 8)
            os.kill(fragile.child("engine_process"), signal.SIGKILL)
            answers = await asyncio.gather(*asks)
            assert (await http.get("/ready")).status_code == 503  # they were told before another one was there
            return answers

    for text in asyncio.run(run()):
        event = text.strip().splitlines()[-1].removeprefix("data: ")
        assert json.loads(event)["error"]["code"] == "unavailable"
    with fragile.client() as http:
        wait_for(lambda: http.get("/ready").status_code == 200, timeout_s=30)
        assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200
    assert fragile.metric("qwench_engine_restarts_total") == 1 and fragile.is_idle()


def test_while_the_engine_starts_requests_are_told_to_wait(fragile: ServerProcess) -> None:
    engine = fragile.child("engine_process")
    with fragile.client() as http:
        os.kill(engine, signal.SIGKILL)
        wait_for(lambda: http.get("/ready").status_code == 503, timeout_s=5, every_s=0.001)
        answer = http.post("/v1/completions", json={"prompt": "a"})
        assert answer.status_code in (200, 503) and http.get("/health").status_code == 200
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
        wait_for(lambda: http.get("/ready").status_code == 200, timeout_s=30)


def test_the_text_process_is_killed(fragile: ServerProcess) -> None:
    os.kill(fragile.child("text_process"), signal.SIGKILL)
    with fragile.client() as http:
        assert http.post("/tokenize", json={"prompt": "a fox"}).status_code in (200, 400)
        assert http.post("/tokenize", json={"prompt": "a fox"}).status_code == 200


def test_excess_is_refused_at_once(fragile: ServerProcess) -> None:
    """8 run and 4 wait; three times as many ask, all of them before the first is done, however busy the machine is."""

    async def ask(http: httpx.AsyncClient, n: int) -> tuple[int, float, int]:
        start = time.monotonic()
        answer = await http.post("/v1/completions", json={**LONG, "max_tokens": 600, "n": n})
        return answer.status_code, time.monotonic() - start, int(answer.headers.get("retry-after", 0))

    async def run() -> list[tuple[int, float, int]]:
        async with httpx.AsyncClient(base_url=fragile.url, timeout=60, limits=httpx.Limits()) as http:
            await asyncio.gather(*(http.get("/health") for _ in range(18)))  # connections are made
            return await asyncio.gather(*(ask(http, 2) for _ in range(18)))

    answers = asyncio.run(run())
    assert sorted(status for status, _, _ in answers) == [200] * 6 + [429] * 12
    last_refusal = max(taken for status, taken, _ in answers if status == 429)
    assert last_refusal < min(taken for status, taken, _ in answers if status == 200)
    assert all(1 <= retry <= 60 for status, _, retry in answers if status == 429)
    wait_for(fragile.is_idle)
    with fragile.client() as http:  # what could never be admitted isn't worth a retry
        assert http.post("/v1/completions", json={**LONG, "n": 13}).status_code == 400


def test_clients_that_leave(fragile: ServerProcess) -> None:
    """At random moments, streamed or not: nothing of them is left."""
    rng = random.Random(0)

    async def leave(http: httpx.AsyncClient) -> None:
        body = {**LONG, "stream": rng.random() < 0.5, "n": rng.choice([1, 2]), "prompt": "fox " * rng.randint(1, 300)}
        with contextlib.suppress(asyncio.TimeoutError, httpx.HTTPError):
            await asyncio.wait_for(http.post("/v1/completions", json=body), rng.random() * 0.3)

    async def run() -> None:
        async with httpx.AsyncClient(base_url=fragile.url, timeout=60, limits=httpx.Limits()) as http:
            for _ in range(10):
                await asyncio.gather(*(leave(http) for _ in range(12)))

    asyncio.run(run())
    wait_for(fragile.is_idle, timeout_s=5)
    assert fragile.metric("qwench_kv_blocks_used") == fragile.metric("qwench_requests_waiting") == 0


def test_a_client_that_does_not_read(fragile: ServerProcess) -> None:
    """It holds nobody up: the answer waits in memory, the engine is free for others."""
    host, port = fragile.url.removeprefix("http://").split(":")
    body = json.dumps({**LONG, "stream": True, "logprobs": 20, "n": 4, "max_tokens": 1000}).encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: fragile.metric("qwench_requests_running") == 4)
        with fragile.client() as http:
            assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 20}).status_code == 200
        wait_for(fragile.is_idle, timeout_s=60)
    wait_for(fragile.is_idle)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_streams_end(artifact: Path, number: int) -> None:
    wish = {**LONG, "max_tokens": 400, "stream": True}
    with running_server(artifact, "--threads", "1") as server, server.client() as http:
        with http.stream("POST", "/v1/completions", json=wish) as stream:
            events = stream.iter_lines()
            next(events)
            server.process.send_signal(number)
            rest = [event for event in events if event]
        assert server.process.wait(30) == 0
        assert rest[-1] == "data: [DONE]" and json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert len(server.log) == 1, server.log  # nothing but where it served


def test_a_second_signal_ends_at_once(artifact: Path) -> None:
    wish = {**LONG, "n": 8, "stream": True}
    with (
        running_server(artifact, "--threads", "1") as server,
        server.client() as http,
        http.stream("POST", "/v1/completions", json=wish) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        with contextlib.suppress(httpx.HTTPError):
            assert "[DONE]" not in "".join(lines)


def test_without_their_parent_the_children_end(artifact: Path) -> None:
    with running_server(artifact, "--threads", "1") as server, server.client() as http:
        children = [server.child("engine_process"), server.child("text_process")]
        with http.stream("POST", "/v1/completions", json={**LONG, "stream": True}):
            server.process.kill()
            server.process.wait()
        wait_for(lambda: not any(Path(f"/proc/{child}/cmdline").exists() for child in children), timeout_s=30)


def test_a_small_cache_gives_the_same_answers(artifact: Path, server: ServerProcess) -> None:
    """One sequence's worth of blocks for eight: they take turns, and say the same."""
    bodies = [
        {"prompt": f"Once upon a time {i}", "max_tokens": 300, "temperature": 0, "ignore_eos": True} for i in range(8)
    ]

    async def ask(url: str) -> list[str]:
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            answers = await asyncio.gather(*(http.post("/v1/completions", json=body) for body in bodies))
            return [answer.json()["choices"][0]["text"] for answer in answers]

    with running_server(artifact, "--threads", "1", "--kvcache-num-blocks", "32") as small:
        assert asyncio.run(ask(small.url)) == asyncio.run(ask(server.url))
        assert small.metric("qwench_preemptions_total") > 0 and small.is_idle()


def test_a_log_whose_disk_is_full_is_no_reason_not_to_serve(artifact: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "qwench.cli.main", "serve", str(artifact), "--threads", "1", "--port", port]

    def is_ready() -> bool:
        assert process.poll() is None
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
        return False

    with Path("/dev/full").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            wait_for(is_ready, START_S)
            body = {"prompt": "Once", "max_tokens": 2, "banana": 1}  # which is logged
            assert httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("options", [("--memory", "1MiB"), ("--host", "203.0.113.1"), ("--api-key-file", "/no/such")])
def test_a_server_that_can_not_start_says_why(artifact: Path, options: tuple[str, ...]) -> None:
    server = ServerProcess(artifact, *options)
    assert server.process.wait(60) == 2
    wait_for(lambda: server.log)
    assert len(server.log) == 1 and server.log[0].startswith("qwench: error:"), server.log


def test_a_request_that_takes_too_long(artifact: Path) -> None:
    with running_server(artifact, "--threads", "1", "--timeout", "0.3") as server, server.client() as http:
        answer = http.post("/v1/completions", json=LONG)
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        lines = http.post("/v1/completions", json={**LONG, "stream": True}).text.strip().split("\n\n")
        assert json.loads(lines[-1][6:])["error"]["code"] == "timeout"
        assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200


def test_nobody_waits_where_nobody_may(artifact: Path) -> None:
    with running_server(artifact, "--threads", "1", "--max-queued", "0") as server, server.client() as http:
        assert http.post("/v1/completions", json={**LONG, "n": 8, "max_tokens": 2}).status_code == 200
        assert http.post("/v1/completions", json={**LONG, "n": 9, "max_tokens": 2}).status_code == 400
