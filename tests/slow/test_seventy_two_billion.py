"""The widths of the 72B shape in int4, eight of its layers, over two ranks: what each holds is what `qwench plan` says.

Takes 24 GB of disk, 12 GiB of memory and a quarter of an hour; QWENCH_TEST_CHECKPOINTS keeps the compiled model in a
folder. Run it alone: `pytest -s tests/slow/test_seventy_two_billion.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_memory_of_ranks import OF_ANY_RANK, held_bytes

from qwench import LLM, QwenchConfig, SamplingParams, compile_checkpoint
from qwench.checkpoint.spec import ModelSpec
from qwench.cli.commands.plan import describe
from qwench.host import available_memory_bytes
from qwench.parallel.team_executor import TeamExecutor
from qwench.program.models import source_shapes
from qwench.safetensors_file import build_header

NUM_LAYERS = 8
SHAPE = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 8192,
    "intermediate_size": 29568, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 152064,
    "num_hidden_layers": NUM_LAYERS, "tie_word_embeddings": False, "max_position_embeddings": 32768,
    "rope_theta": 1e6, "rms_norm_eps": 1e-6, "use_sliding_window": False, "torch_dtype": "bfloat16",
}  # fmt: skip
OPTIONS = {"weights": "int4", "max_seq_len": 1024, "batch_size": 1}
RANKS, PROMPT_TOKENS, NUM_TOKENS = 2, 128, 16

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="ranks need Linux")


def write_streamed(folder: Path) -> Path:
    """A checkpoint of SHAPE, of which no more than a few MiB are in memory: every matrix is cut from one long row of
    random numbers, at a place of its own."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPE))
    tensors = [(name, "BF16", shape) for name, shape in source_shapes(ModelSpec.from_folder(folder)).items()]
    floats = np.random.default_rng(0).standard_normal(16 << 20, np.float32) * np.float32(0.02)
    random = (floats.view(np.uint32) >> 16).astype(np.uint16)  # bf16, cut off
    ones = np.full(SHAPE["hidden_size"], 0x3F80, np.uint16)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(build_header(tensors))
        for name, _, shape in tensors:
            for piece in [ones] if "norm" in name else pieces(random, int(np.prod(shape)), zlib.crc32(name.encode())):
                file.write(piece.data)
    return folder


def pieces(row: np.ndarray, count: int, start: int) -> Iterator[np.ndarray]:
    """So many numbers of a row that begins anew where it ends."""
    at = start % len(row)
    while count:
        piece = row[at : at + count]
        yield piece
        count, at = count - len(piece), 0


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    kept = os.environ.get("QWENCH_TEST_CHECKPOINTS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("72b")
    out = folder / f"72b-{NUM_LAYERS}-layers-int4"
    if not out.exists():
        if shutil.disk_usage(folder).free < 26e9:
            pytest.skip("needs 26 GB of disk")
        source = write_streamed(folder / "72b-source")
        try:
            compile_checkpoint(source, out, QwenchConfig(**OPTIONS))
        finally:
            (source / "model.safetensors").unlink()
            shutil.rmtree(source)
    yield out
    if not kept:
        shutil.rmtree(out)


def test_two_ranks_hold_what_plan_says(artifact: Path, tmp_path: Path) -> None:
    if available_memory_bytes() < 12 << 30:
        pytest.skip("needs 12 GiB of memory")
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    report = describe(tmp_path, QwenchConfig(**OPTIONS, tensor_parallel_size=RANKS))
    prompt = np.random.default_rng(1).integers(0, SHAPE["vocab_size"], PROMPT_TOKENS).tolist()
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    before = held_bytes("self")  # by the tests
    with LLM(artifact, tensor_parallel_size=RANKS, num_threads=RANKS) as llm:
        answer = llm.generate([prompt], params)[0].outputs[0]
        executor = llm.engine.executor
        assert isinstance(executor, TeamExecutor)
        [other] = executor._ranks._processes
        held = [held_bytes("self") - before, held_bytes(other.pid) - OF_ANY_RANK]
    times = answer.timings
    assert times.first_token_s is not None and times.finished_s is not None
    rate = (NUM_TOKENS - 1) / (times.finished_s - times.first_token_s)
    print(f"\n{rate:.2f} tokens/s, first token after {times.first_token_s - times.arrival_s:.1f} s")
    planned = [
        share["weight_bytes"] + share["cache_part"] * report["cache_bytes_per_sequence"] + report["working_bytes"]
        for share in report["ranks"]
    ]
    for rank, (have, plan) in enumerate(zip(held, planned, strict=True)):
        print(f"rank {rank}: holds {have / 2**30:.2f} GiB, planned {plan / 2**30:.2f} GiB")
    assert held == pytest.approx(planned, rel=0.05)
    with LLM(artifact, num_threads=RANKS) as llm:
        assert llm.generate([prompt], params)[0].outputs[0].token_ids == answer.token_ids
