"""Embeddings beside sentence-transformers: ratios of made-up portions; a run in which both read the same tokens."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.embeddings import OURS, THEIRS, main, render, summarise
from benchmarks.synthetic import write_checkpoint

OF_THEIRS = [f"{THEIRS} bfloat16", f"{THEIRS} float32"]


def test_ratios_are_taken_within_portions() -> None:
    """The medians of both sides would say 1.5; the portions say 3, 1.5 and 3. The peer's slower one doesn't count."""
    rows = np.array([[0.6, 0.8]], np.float32)
    seconds = {"qwench int8": (1.0, 2.0, 3.0), "qwench bf16": (9.0,) * 3, OF_THEIRS[0]: (99.0,) * 3}
    seconds[OF_THEIRS[1]] = (3.0, 3.0, 9.0)
    portions = [
        {n: {"seconds": s[i], "rows": rows, "ceiling": 100.0 if n in OURS else None} for n, s in seconds.items()}
        for i in range(3)
    ]
    found = {row["contender"]: row for row in summarise(portions, (4, 25))}
    assert found["qwench int8"]["ahead"] == 3.0 and found["qwench int8"]["ahead_of"] == OF_THEIRS[1]
    assert (found["qwench int8"]["texts_per_s"], found["qwench int8"]["tokens_per_s"]) == (2.0, 50.0)
    assert found["qwench int8"]["share_of_ceiling"] == pytest.approx(0.5)
    assert found[OF_THEIRS[1]]["ahead"] is None and found["qwench bf16"]["min_cosine"] == pytest.approx(1.0)
    assert "3.00x" in render(list(found.values())) and f"of {OF_THEIRS[1]}" in render(list(found.values()))


@pytest.mark.slow
def test_both_embed_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentence_transformers", reason="the peer: pip install sentence-transformers")
    write_checkpoint("tiny", tmp_path / "tiny")
    options = ["--texts", "1", "--tokens", "16", "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["embeddings", str(tmp_path / "tiny"), *options])
    assert main() == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["contender"] for row in found["rows"]] == [*OURS, *OF_THEIRS]
    assert all(row["min_cosine"] > 0.99 and row["texts_per_s"] > 0 for row in found["rows"])
