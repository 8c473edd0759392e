"""`serve --tensor-parallel-size`: one model over several processes, which start again when one of them is lost."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import running_server, wait_for

from qwench import LLM, SamplingParams

PROMPT = "Once upon a time there was a fox"

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="ranks need Linux")


def ranks_of(engine: int) -> list[int]:
    """The processes that an engine process started."""
    children = Path(f"/proc/{engine}/task").glob("*/children")
    return [int(pid) for file in children for pid in file.read_text().split()]


def complete(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 24, "temperature": 0, **fields})


def test_a_server_of_ranks_and_one_that_is_killed(artifact: Path, llm: LLM) -> None:
    expected = llm.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=24))[0].outputs[0].text
    options = ("--name", "tiny", "--tensor-parallel-size", "3", "--threads", "3")
    with running_server(artifact, *options) as server, server.client() as client:
        assert complete(client).json()["choices"][0]["text"] == expected
        engine = server.child("engine_process")
        ranks = ranks_of(engine)
        assert len(ranks) == 2
        with client.stream(
            "POST", "/v1/completions", json={"prompt": PROMPT, "max_tokens": 1500, "stream": True, "ignore_eos": True}
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            os.kill(ranks[0], signal.SIGKILL)
            killed = time.monotonic()
            rest = "\n".join(lines)
        assert time.monotonic() - killed < 10 and '"error"' in rest
        wait_for(lambda: not Path(f"/proc/{engine}").exists(), timeout_s=60)
        wait_for(lambda: client.get("/ready").status_code == 200, timeout_s=60)
        assert complete(client).json()["choices"][0]["text"] == expected
        assert not any(Path(f"/proc/{pid}").exists() for pid in (*ranks, engine))
        assert any("rank 1" in line and "signal 9" in line for line in server.log)
        engine = server.child("engine_process")
        os.kill(ranks_of(engine)[1], signal.SIGKILL)  # while nothing runs: found at once, too
        wait_for(lambda: client.get("/ready").status_code == 503)
        wait_for(lambda: client.get("/ready").status_code == 200, timeout_s=60)
        left = [server.child("engine_process"), *ranks_of(server.child("engine_process"))]
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))
