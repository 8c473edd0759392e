"""A small Hugging Face hub on the loopback: the API, redirects and headers that huggingface_hub relies on."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server serves, and how it misbehaves.

    files: model id -> name -> content. log: every request, as "GET /path range". break_after: bytes of a file after
    which the connection is cut, once per entry. corrupt: files served with one bit flipped, so many times.
    status: model id -> (HTTP status, X-Error-Code) for all its requests.
    """

    files: dict[str, dict[str, bytes]]
    log: list[str] = field(default_factory=list)
    break_after: dict[str, list[int]] = field(default_factory=dict)
    corrupt: dict[str, int] = field(default_factory=dict)
    status: dict[str, tuple[int, str]] = field(default_factory=dict)
    endpoint: str = ""
    file_server: str = ""  # the same server by another name, as the hub's large files come from another host
    tokens: dict[str, str] = field(default_factory=dict)  # first part of the path -> Authorization header seen

    def downloads(self) -> list[str]:
        return [line.rsplit("/", 1)[1] for line in self.log if line.startswith("GET /cdn/")]


def is_large(name: str) -> bool:
    """Kept by git-lfs on the hub: its etag is a sha256, and it is served from elsewhere."""
    return name.endswith((".safetensors", ".bin"))


def etag_of(name: str, content: bytes) -> str:
    if is_large(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.respond(head=True)

    def do_GET(self) -> None:
        self.respond(head=False)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def respond(self, head: bool) -> None:
        self.hub.log.append(" ".join([self.command, self.path.split("?")[0], self.headers.get("Range", "")]).strip())
        self.hub.tokens[self.path.split("/")[1]] = self.headers.get("Authorization", "")
        if match := re.match(r"/api/models/([^/]+/[^/]+)/revision/([^/?]+)", self.path):
            return self.info(match[1], match[2])
        if match := re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            return self.resolve(match[1], match[3], head)
        if match := re.match(r"/cdn/([^/]+/[^/]+)/(.+)", self.path):
            return self.content(match[1], match[2], head)
        return self.answer(404, {}, b"")

    def refused(self, model: str) -> bool:
        if model not in self.hub.files and model not in self.hub.status:
            self.answer(404, {"X-Error-Code": "RepoNotFound"}, b"{}")
            return True
        if model in self.hub.status:
            status, code = self.hub.status[model]
            self.answer(status, {"X-Error-Code": code} if code else {}, b"{}")
            return True
        return False

    def info(self, model: str, revision: str) -> None:
        if self.refused(model):
            return None
        if revision not in ("main", SHA):
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
        siblings = [{"rfilename": name, "size": len(data)} for name, data in self.hub.files[model].items()]
        info = {"id": model, "modelId": model, "sha": SHA, "siblings": siblings, "private": False, "tags": []}
        return self.answer(200, {"Content-Type": "application/json"}, json.dumps(info).encode())

    def resolve(self, model: str, name: str, head: bool) -> None:
        if self.refused(model):
            return None
        content = self.hub.files[model].get(name)
        if content is None:
            return self.answer(404, {"X-Error-Code": "EntryNotFound"}, b"")
        etag = etag_of(name, content)
        headers = {"X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        if is_large(name):
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{etag}"'}
            return self.answer(302, headers | {"Location": f"{self.hub.file_server}/cdn/{model}/{name}"}, b"")
        return self.content(model, name, head, headers | {"ETag": f'"{etag}"'})

    def content(self, model: str, name: str, head: bool, headers: dict[str, str] | None = None) -> None:
        content = self.hub.files[model][name]
        if self.hub.corrupt.get(name, 0) > 0 and not head:
            self.hub.corrupt[name] -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int(match[1]) if (match := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        headers = dict(headers or {})
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cuts = self.hub.break_after.get(name, [])
        if cuts and not head:
            self.answer(206 if start else 200, headers | {"Content-Length": str(len(content) - start)}, None)
            self.wfile.write(content[start : cuts.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            return None
        return self.answer(206 if start else 200, headers, content[start:], head)

    def answer(self, status: int, headers: dict[str, str], body: bytes | None, head: bool = False) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body and not head and self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def running_hub(files: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    """Serves `files` on a free port of the loopback for the length of the block."""
    hub = Hub(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    hub.file_server = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
