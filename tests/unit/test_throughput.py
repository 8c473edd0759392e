"""The benchmark's counting, against an engine whose steps we can count."""

from __future__ import annotations

import numpy as np
import pytest
from test_cost import cost_model, program

from qwench.errors import ConfigError
from qwench.evaluate.machine import Machine
from qwench.evaluate.throughput import Workload, measure_throughput, median, run_round
from qwench.runtime.engine import Engine
from qwench.targets.target import CacheConfig, StepBatch

VOCAB = 300


class CountingExecutor:
    """Answers with zeros and keeps what it was given."""

    def __init__(self) -> None:
        self.prompts: list[bytes] = []
        self.steps: list[int] = []

    @property
    def num_tokens(self) -> int:
        return sum(self.steps)

    def step(
        self, batch: StepBatch, logits: np.ndarray | None = None, hidden: np.ndarray | None = None,
        maxima: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        assert logits is not None and maxima is not None
        maxima[:] = 0
        self.steps.append(len(batch.token_ids))
        if len(batch.token_ids) > len(batch.seq_lens):
            self.prompts.append(batch.token_ids.tobytes())
        out = logits[: len(batch.logit_rows)]
        out[:] = 0
        return out

    def read_block(self, block: int) -> object:
        raise AssertionError

    def write_block(self, block: int, data: object) -> None:
        raise AssertionError

    def copy_blocks(self, source: object, destination: object) -> None:
        raise AssertionError

    def kernels(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        pass


@pytest.fixture
def executor() -> CountingExecutor:
    return CountingExecutor()


def engine_of(executor: CountingExecutor, *, max_seq_len: int = 64, step_tokens: int = 512, blocks: int = 64) -> Engine:
    cache = CacheConfig(blocks, 16, "fp32")
    return Engine(
        executor, VOCAB, cache, max_seq_len=max_seq_len, max_num_seqs=4, max_step_tokens=step_tokens, eos_token_ids=(0,)
    )


@pytest.fixture
def engine(executor: CountingExecutor) -> Engine:
    return engine_of(executor)


MACHINE = Machine(read_gbps=lambda megabytes: 10.0, peak_gops=lambda kind: {"int8": 100.0, "fp32": 50.0}[kind])


def test_a_round_generates_all_that_was_asked(engine: Engine, executor: CountingExecutor) -> None:
    speed = run_round(engine, Workload(num_prompt=20, num_generate=8, num_users=3), seed=1)
    # The last token of each is never computed, and the end token, which these logits prefer, ends nothing.
    assert executor.num_tokens == 3 * (20 + 8 - 1)
    assert speed.prefill_tokens_per_s == pytest.approx(3 * 20 / speed.ttft_s)
    assert speed.decode_tokens_per_s > 0
    assert not engine.has_unfinished() and engine.scheduler.pool.num_free == 64


def test_all_users_decode_while_decoding_is_measured(executor: CountingExecutor) -> None:
    """The first user is far ahead when the last one's prompt is read, and must not be done before the last one is."""
    engine = engine_of(executor, max_seq_len=128, step_tokens=8)
    run_round(engine, Workload(num_prompt=20, num_generate=8, num_users=4), seed=1)
    assert executor.steps[-7:] == [4] * 7
    assert sum(size == 8 for size in executor.steps) > 80 / 8


def test_rounds_differ_and_repeat(engine: Engine, executor: CountingExecutor) -> None:
    costs, workload = cost_model(program()), Workload(num_prompt=20, num_generate=4, num_rounds=2)
    rounds = measure_throughput(engine, costs, MACHINE, workload)
    first = list(executor.prompts)
    assert len(rounds) == 2 and len(set(first)) == 3  # with the round that warms up
    executor.prompts.clear()
    measure_throughput(engine, costs, MACHINE, workload)
    assert [len(p) for p in executor.prompts] == [4 * 4] * 3  # all but four of 20 tokens found in the cache
    assert median(rounds, lambda r: r.ceiling.read_gbps) == 10.0
    assert rounds[0].ceiling.peak_gops == {"fp32": 50.0, "int8": 100.0}


@pytest.mark.parametrize(
    ("sizes", "workload", "says"),
    [
        ({}, Workload(num_users=5), "batch_size 4"),
        ({}, Workload(num_prompt=60, num_generate=5), "64"),
        # 3 users' prompts of 20 take 12 steps of 8 - 3 tokens, in each of which the first user gets a token.
        ({"step_tokens": 8, "max_seq_len": 39}, Workload(num_prompt=20, num_generate=8, num_users=3), "20 generated"),
        ({"step_tokens": 4}, Workload(num_prompt=20, num_users=4, num_generate=2), "prefill_chunk_size"),
        ({"blocks": 7}, Workload(num_prompt=20, num_generate=12, num_users=4), "12 cache blocks"),
    ],
)
def test_what_does_not_fit_is_an_error(
    executor: CountingExecutor, sizes: dict[str, int], workload: Workload, says: str
) -> None:
    engine = engine_of(executor, **sizes)
    with pytest.raises(ConfigError, match=says):
        measure_throughput(engine, cost_model(program()), MACHINE, workload)
    with pytest.raises(ConfigError, match=says):
        run_round(engine, workload, seed=0)
    assert executor.num_tokens == 0


def test_a_workload_has_bounds() -> None:
    with pytest.raises(ConfigError, match="num_generate"):
        Workload(num_generate=1)
