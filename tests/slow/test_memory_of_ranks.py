"""What ranks hold is what `qwench plan` says, and nobody holds the whole model."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from qwench import LLM, QwenchConfig, SamplingParams, compile_checkpoint
from qwench.cli.commands.plan import describe
from qwench.parallel.team_executor import TeamExecutor

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
from transformers_parity import write_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="ranks need Linux")]

SIZE = 3
OF_ANY_RANK = 24 << 20  # interpreter, NumPy and this package


def held_bytes(pid: int | str) -> int:
    """Private and shared memory, without mapped files, whose pages the system drops when it needs them."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon", "RssShmem")))


def test_ranks_hold_what_plan_says(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(
        tmp_path / "model", hidden_size=1280, intermediate_size=6912, num_hidden_layers=24, num_attention_heads=20,
        num_key_value_heads=5, vocab_size=50_000, tie_word_embeddings=False,
    )  # fmt: skip
    config = QwenchConfig(weights="int8", max_seq_len=2048, batch_size=1)
    compile_checkpoint(checkpoint, tmp_path / "artifact", config)
    report = describe(
        checkpoint, QwenchConfig(weights="int8", max_seq_len=2048, batch_size=1, tensor_parallel_size=SIZE)
    )
    with LLM(tmp_path / "artifact", tensor_parallel_size=SIZE, num_threads=SIZE) as llm:
        llm.generate([list(range(10, 1990))], SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True))
        executor = llm.engine.executor
        assert isinstance(executor, TeamExecutor)
        pids = ["self", *(process.pid for process in executor._ranks._processes)]
        for pid, share in list(zip(pids, report["ranks"], strict=True))[1:]:
            cache = share["cache_part"] * report["cache_bytes_per_sequence"]
            planned = share["weight_bytes"] + cache + report["working_bytes"] + OF_ANY_RANK
            assert held_bytes(pid) == pytest.approx(planned, rel=0.05), pid
            assert held_bytes(pid) < 0.6 * report["total_bytes"]
