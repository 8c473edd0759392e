"""The roofline's points, and that a picture is drawn of what an earlier run saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.contenders import CONTENDERS
from benchmarks.picture import BAR_WIDTH, COLOURS, OpPoint, draw, op_points


def op(name: str, operations: float, num_bytes: float, seconds: float) -> dict[str, Any]:
    return {"name": name, "operations": operations, "weight_bytes": num_bytes, "kv_bytes": 0.0, "seconds": seconds}


STEP = {
    "ops": [
        op("embed", 0, 10.0, 1.0),
        op("layers.0.mlp_add", 1e9, 1e6, 1.0),
        op("layers.10.mlp_add", 3e9, 1e6, 1.0),
        op("lm_head", 8e9, 4e6, 1.0),
    ]
}


def test_points_sum_over_layers() -> None:
    assert list(op_points(STEP)) == [
        OpPoint("mlp_add", intensity=2000.0, gops=2.0, share=0.5),
        OpPoint("lm_head", intensity=2000.0, gops=8.0, share=0.25),
    ]


def test_every_contender_has_a_bar() -> None:
    assert COLOURS.keys() == CONTENDERS.keys() and len(set(COLOURS.values())) == len(COLOURS)
    assert BAR_WIDTH * len(CONTENDERS) <= 1


def test_a_report_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib isn't installed")
    figures = [
        {
            "row": "prompt", "title": "prompt of 512", "unit": "tokens/s", "less_is_better": False, "format": "int8",
            "contender": name, "median": median, "qwench_ahead": ahead, "ceiling": 30.0,
        }
        for name, median, ahead in (("qwench", 20.0, None), ("llama.cpp", 10.0, 2.0))
    ]  # fmt: skip
    report = {
        "machine": {"threads": 2, "cpu": "a processor", "instructions": ["avx2", "avx512_vnni"]},
        "model": {"num_weights": 5e8},
        "plan": {"contenders": ["qwench", "llama.cpp"], "formats": ["int8"]},
        "versions": {"qwench": "qwench 1", "llama.cpp": "llama 2"},
        "figures": figures,
        "profiles": {
            "int8": {"ceiling": {"read_gbps": 20.0, "peak_gops": {"int8": 900.0}}, "prefill": STEP, "decode": STEP}
        },
    }
    draw(report, tmp_path / "picture.svg")
    text = (tmp_path / "picture.svg").read_text()
    assert text.count("<svg") == 1 and len(text) > 10_000
