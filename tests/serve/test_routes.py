"""Half-right URLs, routes that dashboards ask for, and pages of other origins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import ServerProcess, running_server

from qwench.serve.protocol import state_replies as replies

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
KEY = "0123456789abcdef-a-good-key"
PAGE = "http://localhost:3000"
BEGINNINGS = ("/v1/", "/", "//v1//", "/v1/v1/", "/openai/v1/", "/api/v1/")
POSTED: dict[str, dict[str, Any]] = {
    "chat/completions": CHAT, "completions": {"prompt": "a", "max_tokens": 1}, "embeddings": {"input": "a"},
    "responses": {"input": "a", "max_output_tokens": 1},
}  # fmt: skip


@pytest.mark.parametrize("path", [f"{start}{end}" for start in BEGINNINGS for end in POSTED])
def test_a_post_to_a_half_right_url_is_answered(server: ServerProcess, path: str) -> None:
    name = next(name for name in POSTED if path.endswith(f"/{name}"))
    for url in (path, f"{path}/"):
        answer = httpx.post(f"{server.url}{url}", json=POSTED[name])
        assert answer.status_code == 200, (url, answer.text)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/models", 200), ("GET", "/v1/models/", 200), ("GET", "/models/tiny", 200), ("GET", "/v1", 200),
        ("GET", "/v1/", 200), ("GET", "/v1/models/Tiny:latest", 200), ("GET", "/props", 200), ("GET", "/slots", 200),
        ("GET", "/version", 200), ("GET", "/v1/health", 200), ("GET", "/anthropic/v1/models", 200),
        ("GET", "/v1/api/tags", 200), ("GET", "/api/tags/", 200), ("HEAD", "/api/version", 200),
        ("GET", "/health/", 200), ("GET", "/healthz", 200),
        ("GET", "/livez", 200), ("GET", "/readyz", 200), ("GET", "/ping", 200), ("GET", "/v1/metrics", 200),
        ("HEAD", "/", 200), ("HEAD", "/v1", 200), ("HEAD", "/v1/models", 200), ("HEAD", "/health", 200),
        ("HEAD", "/v1/chat/completions", 405), ("GET", "/v1/chat/completions/", 405), ("GET", "/v1/models/other", 404),
        ("GET", "/v1/nowhere", 404), ("GET", "/v2/models", 404), ("HEAD", "/nowhere", 404),
        ("GET", "/v1v1/models", 404), ("OPTIONS", "/v1/models", 405),
    ],
)  # fmt: skip
def test_what_is_where(server: ServerProcess, method: str, path: str, status: int) -> None:
    """Nothing is redirected, and HEAD is GET without a body."""
    answer = httpx.request(method, f"{server.url}{path}")
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers
    if method == "HEAD":
        assert answer.content == b"" and int(answer.headers["content-length"]) > 0
    elif status != 200:
        assert path.rstrip("/") in answer.json()["error"]["message"] or status == 405 or "model" in answer.text


def test_posts_to_tokenize_with_the_version(server: ServerProcess) -> None:
    plain = httpx.post(f"{server.url}/tokenize", json={"prompt": "a fox"}).json()
    assert httpx.post(f"{server.url}/v1/tokenize/", json={"prompt": "a fox"}).json() == plain


@pytest.mark.parametrize(
    ("path", "reply"),
    [("/v1", replies.Index), ("/props", replies.Props), ("/slots", replies.Slots), ("/version", replies.Version)],
)
def test_descriptions_are_as_documented(server: ServerProcess, path: str, reply: Any) -> None:
    answer = httpx.get(f"{server.url}{path}").json()
    reply.model_validate(answer)
    documented = httpx.get(f"{server.url}/openapi.json", timeout=60).json()["paths"]
    schema = documented[path]["get"]["responses"]["200"]
    assert schema["content"]["application/json"]["schema"]["$ref"].endswith(f"/{reply.__name__}")
    if path == "/v1":
        assert answer["routes"] == sorted(path for path in documented if path.startswith("/v1/"))
    if path == "/slots":
        assert len(answer) == 8 and {slot["n_ctx"] for slot in answer} == {2048}


def test_limits_and_keys_hold_at_half_right_urls(artifact: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    with running_server(artifact, "--api-key-file", str(keys), "--threads", "1") as server, server.client() as http:
        for method, path in (
            ("POST", "/chat/completions"), ("POST", "/v1/chat/completions/"), ("GET", "/props"), ("GET", "/models"),
            ("GET", "/slots"), ("GET", "/version"), ("GET", "/v1"), ("HEAD", "/"), ("HEAD", "/v1/models"),
            ("GET", "//openapi.json"), ("POST", "/v1/tokenize"),
        ):  # fmt: skip
            assert http.request(method, path).status_code == 401, path
        for path in ("/healthz", "/v1/health", "/health/", "/readyz"):
            assert http.get(path).status_code == 200
        headers = {"authorization": f"Bearer {KEY}"}
        for path in ("/chat/completions", "/v1/chat/completions/"):
            kind = {**headers, "content-type": "text/plain"}
            assert http.post(path, content=b"{}", headers=kind).status_code == 415
            assert http.post(path, json={"messages": "x" * 400_000}, headers=headers).status_code == 413
            assert http.post(path, json=CHAT, headers=headers).status_code == 200


# --- pages of other origins ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_server(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    options = ("--cors-origin", f"{PAGE}/", "--cors-origin", "app://Obsidian.md", "--api-key-file", str(keys))
    with running_server(artifact, "--threads", "1", *options) as server:
        yield server


def preflight(server: ServerProcess, origin: str, **headers: str) -> httpx.Response:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}
    return httpx.options(f"{server.url}/v1/chat/completions", headers={"origin": origin, **asked, **headers})


@pytest.mark.parametrize("origin", [PAGE, PAGE.upper(), "app://obsidian.md"])
def test_a_page_that_may(open_server: ServerProcess, origin: str) -> None:
    answer = preflight(open_server, origin)
    assert answer.status_code == 204 and answer.headers["access-control-allow-origin"] == origin
    assert "POST" in answer.headers["access-control-allow-methods"] and answer.headers["vary"] == "Origin"
    assert answer.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert "access-control-allow-credentials" not in answer.headers
    assert "access-control-allow-private-network" not in answer.headers
    private = preflight(open_server, origin, **{"access-control-request-private-network": "true"})
    assert private.headers["access-control-allow-private-network"] == "true"
    for key, status in ((KEY, 200), ("wrong", 401)):
        headers = {"origin": origin, "authorization": f"Bearer {key}"}
        for stream in (False, True):
            body = {**CHAT, "stream": stream, "foo": 1}
            answer = httpx.post(f"{open_server.url}/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == status and answer.headers["access-control-allow-origin"] == origin
            assert "x-qwench-ignored" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("origin", ["http://localhost:3001", "https://localhost:3000", "null", f"{PAGE}.evil.example"])
def test_a_page_that_may_not(open_server: ServerProcess, origin: str) -> None:
    headers = {"origin": origin, "authorization": f"Bearer {KEY}"}
    for answer in (preflight(open_server, origin), httpx.get(f"{open_server.url}/v1/models", headers=headers)):
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_every_page(artifact: Path) -> None:
    with running_server(artifact, "--threads", "1", "--cors-origin", "*") as server:
        assert preflight(server, "https://a.example").headers["access-control-allow-origin"] == "*"
        headers = {"origin": "null"}
        answer = httpx.get(f"{server.url}/v1/models", headers=headers)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-origin" not in httpx.get(f"{server.url}/v1/models").headers  # no page asked


@pytest.mark.parametrize("origin", ["localhost:3000", "http://a.example/path", "https://", "http://a b", "**", "x,y"])
def test_what_is_no_origin(artifact: Path, origin: str) -> None:
    server = ServerProcess(artifact, "--cors-origin", origin)
    assert server.process.wait(60) == 2 and "origin" in "".join(server.log)
