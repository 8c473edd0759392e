"""The benchmark's arithmetic against closed forms, and its counting against an engine whose steps we can count."""

from __future__ import annotations

import numpy as np
import pytest

from qwench.checkpoint.spec import ModelSpec
from qwench.config import QwenchConfig
from qwench.errors import ConfigError, RequestError
from qwench.evaluate.throughput import Cost, Machine, Workload, measure_throughput, median, run_round, step_cost
from qwench.program.ops import Program
from qwench.program.passes import fuse, set_formats
from qwench.program.qwen2 import build_qwen2
from qwench.runtime.engine import Engine
from qwench.targets.target import CacheConfig, StepBatch

HIDDEN, INTER, LAYERS, VOCAB, KV = 64, 128, 2, 300, 32
CONFIG = {
    "model_type": "qwen2", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INTER,
    "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}  # fmt: skip
LAYER_WEIGHTS = HIDDEN * HIDDEN * 2 + HIDDEN * KV * 2 + 3 * HIDDEN * INTER


def program(fused: bool = True, **config: object) -> Program:
    spec = ModelSpec.from_config(CONFIG | config)
    options = QwenchConfig(weights="int8", head_weights="bf16").resolve(spec)
    built = build_qwen2(spec)
    return set_formats(fuse(built) if fused else built, options.format_of)


def cost(of: Program, new: list[int], context: list[int]) -> Cost:
    return step_cost(of, dict.fromkeys(of.weights, 0), 1.0, new, context)


@pytest.mark.parametrize("fused", [True, False])
def test_operations_are_those_of_the_model(fused: bool) -> None:
    """Two users, 3 new tokens of 10 and 1 of 5: matrices once per token, the head once per user, attention by pair."""
    operations = cost(program(fused), [3, 1], [10, 5]).operations
    pairs = 8 + 9 + 10 + 5
    assert operations["int8"] == 2 * 4 * LAYERS * LAYER_WEIGHTS
    assert operations["fp32"] == 2 * 2 * VOCAB * HIDDEN + LAYERS * 4 * HIDDEN * pairs


def test_a_window_bounds_attention() -> None:
    sliding = program(use_sliding_window=True, sliding_window=4, max_window_layers=0)
    wide, narrow = (cost(p, [3], [10]).operations["fp32"] for p in (program(), sliding))
    assert wide - narrow == LAYERS * 4 * HIDDEN * ((8 + 9 + 10) - 3 * 4)


def test_bytes_are_each_weight_once_and_the_cache_of_each_user() -> None:
    of = program()
    read = step_cost(of, dict.fromkeys(of.weights, 10), 7.0, [1, 1], [20, 30]).read_bytes
    assert read == 10 * len(of.weights) + 7 * 50  # the tied embedding counts as the head, not as the lookup


def test_a_step_takes_the_longer_of_memory_and_arithmetic() -> None:
    step = Cost({"int8": 4e9, "fp32": 1e9}, read_bytes=10e9)
    assert step.seconds({"int8": 4.0, "fp32": 1.0}, read_gbps=100.0) == pytest.approx(2.0)
    assert step.seconds({"int8": 4.0, "fp32": 1.0}, read_gbps=2.0) == pytest.approx(5.0)


class CountingExecutor:
    """Answers with zeros and keeps what it was given."""

    def __init__(self) -> None:
        self.prompts: list[bytes] = []
        self.num_tokens = 0

    def step(self, batch: StepBatch, logits: np.ndarray | None = None) -> np.ndarray:
        assert logits is not None
        self.num_tokens += len(batch.token_ids)
        if len(batch.token_ids) > len(batch.seq_lens):
            self.prompts.append(batch.token_ids.tobytes())
        out = logits[: len(batch.logit_rows)]
        out[:] = 0
        return out

    def copy_blocks(self, source: object, destination: object) -> None:
        raise AssertionError

    def kernels(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        pass


@pytest.fixture
def executor() -> CountingExecutor:
    return CountingExecutor()


@pytest.fixture
def engine(executor: CountingExecutor) -> Engine:
    cache = CacheConfig(64, 16, "fp32")
    return Engine(executor, VOCAB, cache, max_seq_len=64, max_num_seqs=4, max_step_tokens=512, eos_token_ids=(0,))


MACHINE = Machine(read_gbps=lambda megabytes: 10.0, peak_gops=lambda kind: {"int8": 100.0, "fp32": 50.0}[kind])


def test_a_round_generates_all_that_was_asked(engine: Engine, executor: CountingExecutor) -> None:
    speed = run_round(engine, Workload(num_prompt=20, num_generate=8, num_users=3), seed=1)
    # The last token of each is never computed, and the end token, which these logits prefer, ends nothing.
    assert executor.num_tokens == 3 * (20 + 8 - 1)
    assert speed.prefill_tokens_per_s == pytest.approx(3 * 20 / speed.ttft_s)
    assert speed.decode_tokens_per_s > 0


def test_rounds_differ_and_repeat(engine: Engine, executor: CountingExecutor) -> None:
    of, workload = program(), Workload(num_prompt=20, num_generate=4, num_rounds=2)
    weight_bytes = dict.fromkeys(of.weights, 1000)
    rounds = measure_throughput(engine, of, weight_bytes, MACHINE, workload)
    first = list(executor.prompts)
    assert len(rounds) == 2 and len(set(first)) == 3  # with the round that warms up
    executor.prompts.clear()
    measure_throughput(engine, of, weight_bytes, MACHINE, workload)
    assert [len(p) for p in executor.prompts] == [4 * 4] * 3  # all but four of 20 tokens found in the cache
    assert median(rounds, lambda r: r.ceiling.read_gbps) == 10.0
    assert rounds[0].ceiling.peak_gops == {"fp32": 50.0, "int8": 100.0}


def test_what_does_not_fit_is_an_error(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="batch_size 4"):
        measure_throughput(engine, program(), {}, MACHINE, Workload(num_users=5))
    with pytest.raises(RequestError, match="64"):
        run_round(engine, Workload(num_prompt=60, num_generate=5), seed=0)
    with pytest.raises(ConfigError, match="num_generate"):
        Workload(num_generate=1)
