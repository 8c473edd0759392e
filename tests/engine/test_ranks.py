"""Ranks: several processes compute each step, and nothing shows it but their number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwench import LLM, QwenchConfig, SamplingParams, compile_checkpoint
from qwench.artifact.artifact import open_artifact
from qwench.checkpoint.spec import ModelSpec, RopeSpec
from qwench.errors import ConfigError, QwenchError, TargetError
from qwench.parallel.ranks import Ranks
from qwench.parallel.team_executor import TeamExecutor
from qwench.parallel.team_memory import TeamMemory
from qwench.program.models import build_program
from qwench.program.passes import fuse
from qwench.program.shard import Shares, shard
from qwench.targets.target import CacheConfig

MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"
PARAMS = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True, logprobs=3)

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="ranks need Linux")


def prompts(vocab_size: int) -> list[list[int]]:
    return [np.random.default_rng(n).integers(0, vocab_size, n).tolist() for n in (5, 130, 1, 600)]


def answers(llm: LLM, **options: Any) -> list[Any]:
    outputs = llm.generate(prompts(llm.engine.vocab_size), PARAMS, **options)
    return [(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in outputs]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "int8"
    compile_checkpoint(MODEL, folder, QwenchConfig(weights="int8", max_seq_len=1024, batch_size=8))
    return folder


@pytest.mark.parametrize(
    "options",
    [{"weights": "bf16"}, {"weights": "bf16", "activations": "bf16"}, {"weights": "int8"}, {"recipe": "accuracy"},
     {"weights": "int4", "kv_cache": "int8"}],
    ids=lambda options: " ".join(options.values()),
)  # fmt: skip
def test_the_bits_are_those_of_one_process(options: dict[str, str], tmp_path: Path) -> None:
    compile_checkpoint(MODEL, tmp_path / "a", QwenchConfig(**options, max_seq_len=1024, batch_size=8))
    with LLM(tmp_path / "a", num_threads=2) as one:
        expected = answers(one)
        vectors = one.embed(prompts(one.engine.vocab_size))
    for size, shares in ((2, None), (3, None), (2, "3,1")):
        with LLM(tmp_path / "a", tensor_parallel_size=size, shares=shares, num_threads=size) as several:
            assert isinstance(several.engine.executor, TeamExecutor)
            assert answers(several) == expected, (size, shares)
            np.testing.assert_array_equal(several.embed(prompts(several.engine.vocab_size)), vectors)


def test_sliding_windows_and_more_ranks_than_kv_heads(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
    from transformers_parity import write_checkpoint

    base = write_checkpoint(
        tmp_path / "base", seed=1, hidden_size=96, intermediate_size=200, num_attention_heads=6, num_key_value_heads=2,
        use_sliding_window=True, sliding_window=24, max_window_layers=1,
    )  # fmt: skip
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True, logprobs=2)
    ids = [list(range(3, 70)), [7, 8, 9]]
    found = []
    for size in (1, 4, 5):
        with LLM(base, tensor_parallel_size=size, num_threads=size, kv_cache="int8", kvcache_block_size=16) as llm:
            found.append([(o.outputs[0].token_ids, o.outputs[0].logprobs) for o in llm.generate(ids, params)])
    assert found[0] == found[1] == found[2]
    with pytest.raises(ConfigError, match="6 heads, too few for 7 ranks"):
        LLM(base, tensor_parallel_size=7)


def test_prefixes_blocks_and_adapters(artifact: Path, tmp_path: Path) -> None:
    """A prefix that one process saved is read by two, and the other way round; rows of adapters are as alone."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
    from test_lora_adapters import write_adapter

    prompt = np.random.default_rng(3).integers(0, 2000, 200).tolist()
    with LLM(artifact, num_threads=1) as one, LLM(artifact, tensor_parallel_size=2, num_threads=2) as two:
        spec = one._artifact.program.spec  # type: ignore[union-attr]
        folder = write_adapter(tmp_path / "adapter", 1, spec.hidden_size, spec.num_layers)
        for saver, loader in ((one, two), (two, one)):
            saver.save_prefix(prompt, tmp_path / "p.prefix")
            data = (tmp_path / "p.prefix").read_bytes()
            loader.save_prefix(prompt, tmp_path / "q.prefix")
            assert (tmp_path / "q.prefix").read_bytes() == data
        with LLM(artifact, tensor_parallel_size=3, num_threads=3) as three:
            three.load_prefix(tmp_path / "p.prefix")
            answer = three.generate(prompt, PARAMS)[0].outputs[0]
            assert answer.timings.num_cached_tokens == 192
            assert answer.logprobs == one.generate(prompt, PARAMS)[0].outputs[0].logprobs
        for llm in (one, two):
            llm.load_lora("a", folder)
        names = ["a", None, "a", "a"]
        assert answers(one, lora=names) == answers(two, lora=names) != answers(two)
        two.unload_lora("a")
        assert answers(two) == answers(one)


def test_what_ranks_share_has_room_for_any_block_of_any_number_of_them(artifact: Path) -> None:
    """Blocks of more than 256 MiB, more than 8 ranks: every place is one rank's own, and none is native code's."""
    opened = open_artifact(artifact)
    cache = CacheConfig(num_blocks=2, block_size=1 << 20, dtype="fp32")
    for num_ranks in (1, 2, 9, 64):
        shared = TeamMemory.of(opened.program, opened.plan, cache, num_ranks)
        assert shared.result_bytes == cache.block_bytes(opened.program) > 256 << 20
        assert shared.mail_bytes > shared.result_bytes  # which a call brings to all ranks
        memory = Ranks(shared.num_bytes, [], 1).memory
        for rank in range(1, num_ranks):
            shared.result(memory, rank, shared.result_bytes)[[0, -1]] = rank
        assert shared.native(memory)[-1] == 0
        for rank in range(1, num_ranks):
            assert shared.result(memory, rank, shared.result_bytes)[[0, -1]].tolist() == [rank, rank]


def test_too_much_to_share_is_said_with_the_number() -> None:
    with pytest.raises(TargetError, match=r"ranks need .*iB of addresses to share"):
        Ranks(1 << 55, [], 1)


@pytest.mark.slow
def test_more_than_eight_ranks_save_a_prefix(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
    from transformers_parity import write_checkpoint

    base = write_checkpoint(tmp_path / "base", hidden_size=80, num_attention_heads=10, num_key_value_heads=10)
    saved = []
    for size in (1, 10):
        with LLM(base, tensor_parallel_size=size, num_threads=size, kvcache_block_size=16) as llm:
            llm.save_prefix(list(range(3, 70)), tmp_path / f"{size}.prefix")
            saved.append((tmp_path / f"{size}.prefix").read_bytes())
            llm.load_prefix(tmp_path / f"{size}.prefix")
    assert saved[0] == saved[1]


def test_a_rank_that_is_killed_is_told_and_leaves_nobody_behind(artifact: Path) -> None:
    with LLM(artifact, tensor_parallel_size=3, num_threads=3) as llm:
        executor = llm.engine.executor
        assert isinstance(executor, TeamExecutor)
        pids = [process.pid for process in executor._ranks._processes]
        stream = llm.generate(prompts(2000)[1], SamplingParams(max_tokens=500, ignore_eos=True), stream=True)
        next(stream)
        os.kill(pids[1], signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(TargetError, match=rf"rank 2 \(process {pids[1]}\) was ended by signal 9"):
            for _ in stream:
                pass
        assert time.monotonic() - start < 10
        with pytest.raises(QwenchError, match="rank 2"):
            llm.generate([1, 2, 3], PARAMS)
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()


def test_ranks_end_with_rank_0_however_that_ends(artifact: Path) -> None:
    code = (
        "import sys, time; from qwench import LLM; llm = LLM(sys.argv[1], tensor_parallel_size=2, num_threads=2)\n"
        "print(llm.engine.executor._ranks._processes[0].pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(artifact)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_a_rank_that_can_t_start_says_why(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import qwench.parallel.load as load

    monkeypatch.setattr(load, "str", lambda path: f"{path}-gone", raising=False)
    with pytest.raises(TargetError, match=r"rank 1 .* ended with status 2: .*-gone is not a folder"):
        LLM(artifact, tensor_parallel_size=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"tensor_parallel_size": 0}, "tensor_parallel_size"), ({"tensor_parallel_size": 5}, "4 heads, too few"),
     ({"shares": "2,1"}, "goes with tensor_parallel_size"),
     ({"tensor_parallel_size": 2, "shares": (2, 1)}, "goes with tensor_parallel_size"),
     ({"tensor_parallel_size": 2, "shares": "1"}, "2 numbers from 1 on"),
     ({"tensor_parallel_size": 2, "shares": "1,x"}, "2 numbers from 1 on"),
     ({"tensor_parallel_size": 2, "shares": "1,0"}, "2 numbers from 1 on"),
     ({"tensor_parallel_size": 2, "shares": "1,100"}, "too few for 2 ranks with shares of 1,100")],
)  # fmt: skip
def test_impossible_shares(artifact: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM(artifact, **options)


def test_every_output_has_one_rank() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        heads = int(rng.integers(2, 9))
        spec = ModelSpec(
            int(rng.integers(64, 3000)), 64 * heads, int(rng.integers(64, 900)), 1, heads, heads, 64, 1e-6, False, 64,
            RopeSpec(10000.0), (None,),
        )  # fmt: skip
        program, size = fuse(build_program(spec)), int(rng.integers(1, heads + 1))
        shares = Shares.parse(size, None, spec)
        ranks = [shard(program, shares, rank) for rank in range(size)]
        for i, op in enumerate(program.ops):
            for key in ("panels", "heads"):
                spans = [rank.ops[i].attrs[key] for rank in ranks if key in rank.ops[i].attrs]
                if spans:
                    assert spans[0][0] == 0 and all(a[1] == b[0] for a, b in pairwise(spans))
                    outputs = 32 if op.kind == "gate_up_silu" else 64
                    width = program.buffers[op.output].width
                    assert spans[-1][1] == (spec.num_heads if key == "heads" else -(-width // outputs))
