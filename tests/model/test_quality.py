"""`python -m benchmarks.quality` on the default model: a row for each model, and a word where llama.cpp isn't there."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the truth of this benchmark: pip install qwench[hf]")

from benchmarks.quality import main

MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"


def test_models_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "quality.json"
    arguments = [MODEL, "--text", MODEL / "evaluation.txt", "--max-tokens", 1100, "--window", 512, "--no-bf16"]
    arguments += ["--formats", "int8", "--threads", 1, "--json", out]
    monkeypatch.setattr(sys, "argv", ["quality", *map(str, arguments)])
    assert main() == 0
    printed = capsys.readouterr()
    truth, ours, *peers = json.loads(out.read_text())["rows"]
    assert truth["top1"] == 1 and truth["bits_per_weight"] is None and truth["kl"] is None
    assert 1e-6 < ours["kl"] < 1e-3
    assert ours["name"] == "qwench int8" and 8 < ours["bits_per_weight"] < 9
    assert ours["perplexity"] == pytest.approx(truth["perplexity"], rel=0.01)
    assert "qwench int8" in printed.out
    if importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("gguf"):
        (llama,) = peers
        assert llama["perplexity"] == pytest.approx(truth["perplexity"], rel=0.01)
    else:
        assert peers == []
        assert "llama.cpp int8 is left out" in printed.err and "isn't installed" in printed.err
