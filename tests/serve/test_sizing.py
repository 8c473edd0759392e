"""The arithmetic of docs/serving.md, "Sizing", against itself and against /metrics."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from server_process import MODEL, ServerProcess, running_server, wait_for

TEXT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
ROWS = re.findall(r"^\| (Qwen\S+) \| (\d+), (\d+), (\d+) \| (\d+\.\d) KiB \| (\d+) \|$", TEXT, re.MULTILINE)
MEMORY = 24 << 20


def bytes_per_token(layers: int, kv_heads: int, head_dim: int) -> int:
    """As the document has it."""
    return 2 * layers * kv_heads * (head_dim * 2 + 4)


def test_the_table() -> None:
    assert len(ROWS) >= 6
    for name, layers, kv_heads, head_dim, kib, users in ROWS:
        per_token = bytes_per_token(int(layers), int(kv_heads), int(head_dim))
        assert f"{per_token / 1024:.1f}" == kib, name
        assert 2**30 // (2000 * per_token) == int(users), name


def test_the_blocks_of_a_server(artifact: Path) -> None:
    config = json.loads((MODEL / "config.json").read_text())
    per_token = bytes_per_token(
        config["num_hidden_layers"], config["num_key_value_heads"],
        config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
    )  # fmt: skip
    command = [sys.executable, "-m", "qwench.cli.main", "plan", str(MODEL), "--weights", "int8", "--batch-size", "8"]
    plan = json.loads(subprocess.run([*command, "--json"], capture_output=True, check=True).stdout)
    assert plan["cache_bytes_per_sequence"] == 2048 * per_token
    with running_server(artifact, "--threads", "1", "--memory", f"{MEMORY >> 20}MiB") as server:
        size = server.metric("qwench_kv_block_tokens")
        left = MEMORY - plan["weights_bytes"] - plan["working_bytes"]
        assert server.metric("qwench_kv_blocks") == left // (size * per_token)
        for num_tokens in (31, 33, 200):
            check_use(server, num_tokens, size)


def check_use(server: ServerProcess, num_tokens: int, block_tokens: float) -> None:
    """A long answer to a prompt of so many tokens: its blocks are those of the tokens that there are."""
    body = {"prompt": [5] * num_tokens, "max_tokens": 1500, "ignore_eos": True, "stream": True, "logprobs": 0}
    with server.client() as http, http.stream("POST", "/v1/completions", json=body) as answer:
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        seen = []
        wait_for(lambda: seen.append(server.metric("qwench_kv_blocks_used")) or seen[-1] > 0, every_s=0)
        assert -(-num_tokens // block_tokens) <= seen[-1] <= -(-(num_tokens + 1500) // block_tokens)
    wait_for(server.is_idle)
    wait_for(lambda: server.metric("qwench_kv_blocks_used") == 0)
