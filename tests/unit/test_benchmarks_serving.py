"""The table of `benchmarks.serving`: ratios within rounds, medians over them."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.serving import show


def round_of(speed: float, ms_per_token: float) -> dict[str, Any]:
    spread = {"p50": ms_per_token / 1e3, "p99": 2 * ms_per_token / 1e3}
    return {"answer_tokens_per_s": speed, "ttft_s": {"p50": 0.5}, "tpot_s": spread}


def test_ratios_are_of_the_same_round(capsys: pytest.CaptureFixture[str]) -> None:
    ours = [round_of(speed, 10) for speed in (100, 50, 200)]
    theirs = [round_of(speed, 30) for speed in (50, 10, 50)]
    rows = [
        {"format": "int8", "users": 32, "server": name, "rounds": rounds}
        for name, rounds in (("qwench", ours), ("llama.cpp", theirs))
    ]
    load = {"prompt": 128, "answer": 64, "each": 2, "rounds": 3}
    show({"checkpoint": "a", "cpu": "b", "threads": 2, "load": load, "rows": rows})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["int8", "32", "qwench", "100.0", "0.50", "10.0", "20.0", "4.00"] in lines
    assert ["int8", "32", "llama.cpp", "50.0", "0.50", "30.0", "60.0"] in lines
