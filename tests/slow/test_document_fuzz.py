"""schemathesis at length: its systematic cases for every field, and thousands of random ones."""

from __future__ import annotations

from pathlib import Path

from schemathesis_run import run_schemathesis
from server_process import running_server, short_model


def test_schemathesis_at_length(tmp_path: Path) -> None:
    with running_server(short_model(tmp_path / "model"), "--threads", "1") as server:
        print(run_schemathesis(server, tmp_path, phases="coverage,fuzzing", max_examples=200))
        assert server.metric("qwench_engine_restarts_total") == 0
