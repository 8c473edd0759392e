"""What the server refuses: with the right status, OpenAI's error JSON, at once, and unharmed."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import ServerProcess, running_server

MESSAGES = [{"role": "user", "content": "Hello"}]
KEY = "0123456789abcdef-a-good-key"
WRONG_KEYS = ("", "Bearer wrong", KEY, "Bearer", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}")


@pytest.fixture(scope="module")
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with server.client() as http:
        yield http
        assert http.get("/ready").status_code == 200  # nothing of all this did harm


def error_of(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return dict(body["error"])


BAD_CHAT = {
    "temperature": [-0.1, 2.1, "x", True, 1e308, [], 10**400],
    "top_p": [-0.1, -1, 1.01],
    "min_p": [-0.1, 1.1],
    "top_k": [-2, 1.5, 2**31],
    "n": [0, -1, 129, 1e9, "x"],
    "max_tokens": [0, -2, 2**31, 1.5, 2**64],
    "max_completion_tokens": [0, 10**30],
    "presence_penalty": [-2.1, 2.1],
    "frequency_penalty": [-2.1, 2.1],
    "repetition_penalty": [0, -1, 101],
    "seed": [2**63, -(2**63) - 1, 0.5],
    "logit_bias": [{"a": 1}, {"-1": 1}, {"1": 101}, {"1": "x"}, {"99999999999": 1}, {"5000": 1}, [1]],
    "stop": [["x"] * 257, "x" * 257, [1], 5],
    "stop_token_ids": [[-1], [2**63], ["1"], [2048]],
    "top_logprobs": [21, -1, 3],  # 3: without logprobs
    "min_tokens": [-1, 2**31],
    "messages": [
        [], "Hello", [{}], [{"role": "user"}], [{"role": "wizard", "content": ""}], [None],
        [{"role": "user", "content": 5}], [{"role": "user", "content": [{"type": "image_url"}]}],
    ],
    "stream_options": [5, {"include_usage": "x"}],
    "response_format": [{"type": "xml"}],
    "chat_template_kwargs": [{"chat_template": "{{ 1 }}"}, {"messages": "x"}, {"tools": "x"}, {"enable_thinking": []}],
    "model": [5, ["tiny"]],
    "stream": ["x", 2],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CHAT)
def test_a_value_out_of_bounds(http: httpx.Client, name: str) -> None:
    for value in BAD_CHAT[name]:
        body = json.dumps({"messages": MESSAGES, "max_tokens": 1, name: value})
        answer = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, f"{value!r}: {answer.text}"
        error = error_of(answer)
        assert error["type"] == "invalid_request_error"
        assert name in (error["param"] or error["message"]) or name in error["message"], f"{value!r}: {error}"


BAD_COMPLETIONS: list[dict[str, Any]] = [
    {}, {"prompt": ""}, {"prompt": []}, {"prompt": [[]]}, {"prompt": [-1]}, {"prompt": [2048]}, {"prompt": [1.5]},
    {"prompt": ["a"] * 129}, {"prompt": [1] * 2048}, {"prompt": "a", "max_tokens": 0}, {"prompt": "a", "logprobs": 21},
    {"prompt": "a", "best_of": 2}, {"prompt": ["a", "b"], "suffix": "c"}, {"prompt": "a", "suffix": "c"},
    {"prompt": [[1], "a"]}, {"prompt": [True]}, {"prompt": None},
    {"prompt": "a", "n": 100, "max_tokens": 1000, "logprobs": 5},
    {"prompt": "a", "echo": True, "logprobs": 1, "suffix": "b"}, {"prompt": ["a"] * 128, "n": 2},
]  # fmt: skip


@pytest.mark.parametrize("body", BAD_COMPLETIONS, ids=lambda body: json.dumps(body)[:40])
def test_completions_that_can_not_be(http: httpx.Client, body: dict[str, Any]) -> None:
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    error_of(answer)


def test_a_prompt_too_long_has_the_code_that_clients_look_for(http: httpx.Client) -> None:
    for count in (3000, 50_000):  # tokenised, and not
        body = {"messages": [{"role": "user", "content": "fox " * count}]}
        assert error_of(http.post("/v1/chat/completions", json=body))["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b'{"a":' * 50_000, b"[" * 100_000 + b"]" * 100_000, b'{"prompt": NaN}',
        b'{"prompt": "a", "user": "\\ud800"}', b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}', b'{"prompt": "a", "seed": ' + b"9" * 100_000 + b"}",
    ],
    ids=lambda body: repr(body[:30]),
)  # fmt: skip
def test_a_body_that_is_not_what_it_should_be(http: httpx.Client, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize"):
        answer = http.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text
        error_of(answer)


def test_a_byte_order_mark_is_left_aside(http: httpx.Client) -> None:
    """PowerShell and Notepad write it."""
    body = b'\xef\xbb\xbf{"prompt": "a", "max_tokens": 1}'
    answer = http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text


def test_bodies_of_another_kind_or_size(http: httpx.Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = http.post("/v1/completions", content=b'{"prompt": "a"}', headers={"content-type": kind})
        assert answer.status_code == 415
        error_of(answer)
    large = b'{"prompt": "' + b"a" * 400_000 + b'"}'
    for content in (large, iter([large[:200_000], large[200_000:]])):  # with Content-Length, and chunked
        answer = http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        error_of(answer)


def test_a_body_that_is_coded(http: httpx.Client) -> None:
    body, kind = gzip.compress(b'{"prompt": "a"}'), {"content-type": "application/json"}
    for coding in ("gzip", "br", "gzip, identity"):
        answer = http.post("/v1/completions", content=body, headers={**kind, "content-encoding": coding})
        assert answer.status_code == 415 and answer.headers["accept-encoding"] == "identity"
        assert coding in error_of(answer)["message"]
    plain = b'{"prompt": "a", "max_tokens": 1}'
    answer = http.post("/v1/completions", content=plain, headers={**kind, "content-encoding": "Identity"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/completions", {"prompt": []}, "prompt: List should have at least 1 item"),
        ("/v1/completions", {"prompt": ["a"] * 129}, "prompt: List should have at most 128 items"),
        ("/v1/completions", {"prompt": [1, "a"]}, "prompt.1: Input should be a valid integer"),
        ("/v1/completions", {"prompt": "a", "stop": ["a"] * 257}, "stop: List should have at most 256 items"),
        ("/v1/completions", {"prompt": 5}, "prompt: Input should be a valid string"),
        ("/v1/responses", {"input": []}, "input: List should have at least 1 item"),
        ("/v1/embeddings", {"input": ["a"] * 3000}, "input: List should have at most 2048 items"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_of_a_field_with_several_forms_the_one_that_was_meant_is_spoken_of(
    http: httpx.Client, path: str, body: dict[str, Any], message: str
) -> None:
    assert error_of(http.post(path, json=body))["message"].startswith(message)


def test_paths_and_methods(http: httpx.Client) -> None:
    for method, path, status in (
        ("GET", "/nowhere", 404), ("GET", "/v1/chat/completions", 405), ("POST", "/health", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/chat/completions/", 405), ("OPTIONS", "/v1/chat/completions", 405), ("GET", "/docs", 404),
    ):  # fmt: skip
        answer = http.request(method, path)
        assert answer.status_code == status, (method, path)
        error_of(answer)


def test_refusals_are_quick(http: httpx.Client, server: ServerProcess) -> None:
    """Below 20 ms on a quiet machine; here of processors' time, which is twice as long beside much other work."""
    bodies = (
        {"messages": MESSAGES, "n": 10**9}, {"messages": MESSAGES, "max_tokens": 10**10},
        {"messages": [{"role": "user", "content": "fox " * 50_000}]}, {"messages": [{"role": "x"}] * 5000},
        {str(i): i for i in range(10_000)}, {"messages": MESSAGES, "logit_bias": {str(-i): "x" for i in range(9000)}},
        {"messages": [{str(i): i for i in range(10_000)}]}, {"messages": [[[[]]]] * 8000},
        {"messages": [{"role": "user", "content": "x", "y": 1}] * 500, "n": 0},
        {"messages": [*[{"role": "user", "content": ["x"]}] * 500, {"role": "x"}]},
        {"messages": [{"role": "user", "content": "x", "y": 1}] * 3000, "n": 0}, {"messages": MESSAGES * 8000},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "y": 1}]}] * 1500, "n": 0},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x"}}] * 15}] * 90, "n": 0},
        {"messages": [*MESSAGES * 3000, {"role": "x"}]}, {"prompt": [*[1] * 50_000, "x"]},
        {"messages": [{"role": "user", "content": "x", **{f"y{i}": 1 for i in range(250)}}] * 33, "n": 0},
    )  # fmt: skip
    for body in bodies:
        before_s = server.cpu_s()
        for _ in range(10):
            assert http.post("/v1/chat/completions", json=body).status_code == 400
        taken_s = (server.cpu_s() - before_s) / 10
        assert taken_s < 0.06, f"{taken_s} for {str(body)[:60]}"


def test_a_conversation_has_so_many_turns_and_parts(http: httpx.Client) -> None:
    turn = {"role": "user", "content": [{"type": "text", "text": "x"}] * 99}
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"messages": [turn] * 31}), ("/v1/messages", {"messages": [turn] * 31}),
        ("/v1/messages", {"messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "x"}] * 999}] * 4}]}),
        ("/v1/responses", {"input": [turn] * 31}), ("/api/chat", {"messages": MESSAGES * 3073}),
    ]  # fmt: skip
    for path, body in bodies:
        answer = http.post(path, json=body)
        assert answer.status_code == 400 and "no more than 3072 are read" in answer.text, answer.text
    many = {"messages": [{"role": "user", "content": "x", **{f"y{i}": 1 for i in range(250)}}] * 33}
    assert "8192 other fields" in http.post("/v1/chat/completions", json=many).text


def raw(server: ServerProcess, data: bytes, timeout_s: float = 20) -> bytes:
    """What the server answers to these bytes until it closes the connection or has nothing more to say."""
    host, port = server.url.removeprefix("http://").split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=timeout_s) as connection:
        try:
            connection.sendall(data)
            while chunk := connection.recv(65536):
                answer += chunk
        except (ConnectionError, TimeoutError):
            pass
    return answer


def test_heads_that_are_too_large_or_no_http(server: ServerProcess) -> None:
    start = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    for data, status in (
        (start + b"X: " + b"a" * 10_000_000 + b"\r\n\r\n", b"431"), (start + b"X: a\r\n" * 100_000 + b"\r\n", b"431"),
        (b"GET /" + b"a" * 1_000_000, b"431"), (b"\x16\x03\x01\x02\x00\x01\x00", b"400"), (b"nonsense\r\n\r\n", b"400"),
    ):  # fmt: skip
        answer = raw(server, data)
        # Where the client is still sending when the server closes, the answer may be lost on the way.
        assert answer == b"" or answer.startswith(b"HTTP/1.1 " + status), answer[:100]
        if answer:
            assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"error"}
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_hosts_that_are_not_this_one(server: ServerProcess) -> None:
    port = server.url.rpartition(":")[2]
    for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "", "[::1"):
        assert httpx.get(f"{server.url}/v1/models", headers={"host": host}).status_code == 421, host
    for host in (f"localhost:{port}", "127.0.0.1", f"[::1]:{port}", "LOCALHOST"):
        assert httpx.get(f"{server.url}/v1/models", headers={"host": host}).status_code == 200, host


def test_http_1_0(server: ServerProcess) -> None:
    """As health checks of proxies, old proxies and ApacheBench speak it: without a Host, and without chunks."""
    assert raw(server, b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert raw(server, b"GET /health HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 421")
    assert raw(server, b"GET /health HTTP/1.0\r\nHost: evil.example\r\n\r\n").startswith(b"HTTP/1.1 421")
    body = json.dumps({"prompt": "Once", "max_tokens": 5, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    fields, _, events = raw(server, head + body).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in fields and b"connection: close" in fields
    assert events.startswith(b"data: {") and events.endswith(b"data: [DONE]\n\n") and b"\r" not in events


def test_without_the_key_only_health_is_open(artifact: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"# of the team\n{KEY}\n\nanother-good-key-of-the-team\n")
    with running_server(artifact, "--api-key-file", str(keys), "--threads", "1") as server, server.client() as http:
        schema = http.get("/openapi.json", headers={"authorization": f"Bearer {KEY}"}).json()
        assert len(schema["paths"]) > 8 and schema["security"] == [{"key": []}]
        assert schema["paths"]["/health"]["get"]["security"] == []
        for path, methods in {**schema["paths"], "/openapi.json": {"get": {}}, "/nowhere": {"get": {}}}.items():
            for method in methods:
                for headers in ({"api-key": KEY}, *({"authorization": wrong} for wrong in WRONG_KEYS)):
                    answer = http.request(method, path.replace("{name}", "tiny"), headers=headers, json={})
                    if path in ("/health", "/ready"):
                        assert answer.status_code == 200
                    else:
                        assert answer.status_code == 401, (method, path, headers)
                        assert "give an API key" in answer.text
                        is_openai = not path.startswith(("/v1/messages", "/api/"))
                        assert not is_openai or error_of(answer)["code"] == "invalid_api_key"
        for key in (KEY, "another-good-key-of-the-team"):
            assert http.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
