"""`qwench prefix save` and `qwench serve --prefix-dir`: a server that knows its system prompt from the start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from server_process import ServerProcess, running_server, wait_for

SYSTEM = "You tell short stories about animals. " * 12


def prefix(*arguments: str) -> str:
    """Its output and its messages."""
    command = [sys.executable, "-m", "qwench.cli.main", "prefix", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def chat(server: ServerProcess) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Tell me one about a fox."}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 20, "logprobs": True, "top_logprobs": 3}
    return dict(httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json())


def test_a_server_with_prefixes(artifact: Path, server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text(SYSTEM)
    system = ["save", str(artifact), str(tmp_path / "stories.prefix"), "-f", str(tmp_path / "system.txt"), "--system"]
    assert "kept " in prefix(*system)
    prefix("save", str(artifact), str(tmp_path / "tale.prefix"), "-p", "Once upon a time there was a fox. " * 8)
    listed = prefix("list", str(tmp_path))
    assert "stories" in listed and "tale" in listed
    with running_server(artifact, "--threads", "1", "--prefix-dir", str(tmp_path)) as other:
        for _ in range(2):
            with_prefix = chat(other)
            cached = with_prefix["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert cached >= 64 and cached % 32 == 0
        plain = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]})
        assert plain.status_code == 200
        assert with_prefix["choices"] == chat(server)["choices"]


def test_a_damaged_prefix_keeps_the_server_from_starting(artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.prefix"
    prefix("save", str(artifact), str(path), "-p", "Once upon a time there was a fox. " * 8)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    server = ServerProcess(artifact, "--prefix-dir", str(tmp_path))
    assert server.process.wait(60) == 2
    wait_for(lambda: server.log)
    assert "bad.prefix is damaged" in server.log[0]
