"""Where a step's time goes: shares against a clock that we set, steps against the reference, the cpu target's clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from engine_models import load_model

from qwench.errors import ConfigError, TargetError
from qwench.evaluate.cost import CostModel, Limits, StepShape
from qwench.evaluate.machine import Machine
from qwench.evaluate.profile import Profile, measure_profile
from qwench.evaluate.throughput import Workload
from qwench.runtime.engine import Engine
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.targets.target import Executor, Float32, StepBatch, TimedExecutor

MACHINE = Machine(
    read_gbps=lambda megabytes: 80.0 if megabytes == 4 else 10.0,
    peak_gops=lambda kind: {"int8": 100.0, "fp32": 50.0}[kind],
)
LIMITS = Limits(10.0, {"fp32": 50.0, "int8": 100.0}, 80.0)
WORKLOAD = Workload(num_prompt=20, num_generate=4, num_users=3, num_rounds=2)


class SetClock:
    """The reference, with a clock on which op i takes (i + 1) ms a step, `slower` times as long in each further round;
    keeps what it was given and what it answered."""

    def __init__(self, inner: Executor, program: Any, slower: Sequence[float] = ()) -> None:
        self.inner, self.program = inner, program
        self.steps: list[StepBatch] = []
        self.logits: list[Float32] = []
        self._elapsed = {op.name: 0.0 for op in program.ops}
        self._slower, self._readings = list(slower), 0

    def step(
        self, batch: StepBatch, logits: Float32 | None = None, hidden: Float32 | None = None,
        maxima: Float32 | None = None,
    ) -> Float32:  # fmt: skip
        out = self.inner.step(batch, logits, hidden, maxima)
        self.steps.append(batch)
        self.logits.append(out.copy())
        pace = self._slower[(self._readings - 1) // 4] if self._slower else 1.0  # read twice a stretch, two a round
        for i, name in enumerate(self._elapsed):
            self._elapsed[name] += (i + 1) * 1e-3 * pace
        return out

    def op_seconds(self) -> dict[str, dict[str, float]]:
        self._readings += 1
        merged = "final_norm"  # as if a target had merged it into the head
        return {
            name: {} if name == merged else {"product": s * 0.75, "rest": s * 0.25} for name, s in self._elapsed.items()
        }

    def embed(self, token_ids: object) -> Float32:
        raise AssertionError

    def set_adapter(self, number: int, adapter: object) -> None:
        raise AssertionError

    def read_block(self, block: int) -> Any:
        raise AssertionError

    def write_block(self, block: int, data: object) -> None:
        raise AssertionError

    def copy_blocks(self, source: object, destination: object) -> None:
        raise AssertionError

    def kernels(self) -> dict[str, str]:
        return self.inner.kernels()

    def close(self) -> None:
        self.inner.close()


def profile(workload: Workload = WORKLOAD, slower: Sequence[float] = (), **options: object) -> tuple[Profile, SetClock]:
    engine = load_model(weights="int8", **options)  # type: ignore[arg-type]
    clock = SetClock(engine.executor, engine.executor.program, slower)  # type: ignore[attr-defined]
    engine.executor = clock
    return measure_profile(engine, costs_of(engine), MACHINE, workload), clock


def costs_of(engine: Engine) -> CostModel:
    program = engine.executor.program  # type: ignore[attr-defined]
    position_bytes = engine.cache.block_bytes(program) / engine.cache.block_size
    return CostModel(program, dict.fromkeys(program.weights, 10_000_000), position_bytes)


def test_every_op_is_there_with_its_share() -> None:
    result, clock = profile()
    for step, shape in (
        (result.prefill, StepShape([20] * 3, [20] * 3, 3)),
        (result.decode, StepShape([1] * 3, [22] * 3, 3)),  # the mean of contexts 21, 22 and 23
    ):
        idle = [name for name, buffer in clock.program.buffers.items() if buffer.rows == "hidden"]
        assert len(idle) == 4  # one before each of the two layers, and the last with its norm
        sources = [(i, op) for i, op in enumerate(clock.program.ops) if op.name not in idle]
        assert [op.name for op in step.ops] == [op.name for _, op in sources]
        for op, (i, source) in zip(step.ops, sources):
            cost = CostModel(
                clock.program, dict.fromkeys(clock.program.weights, 10_000_000), position_bytes(clock)
            ).of_op(source, shape)
            assert op.kind == source.kind and op.kernel == f"numpy.{source.kind}"
            assert op.bytes == pytest.approx(cost.weight_bytes + cost.kv_bytes + cost.activation_bytes)
            assert op.operations == pytest.approx(sum(cost.operations.values()))
            assert op.bound_s == pytest.approx(cost.seconds(LIMITS))
            assert op.bound_s == pytest.approx(cost.times(LIMITS)[op.bound])
            if op.name == "final_norm":
                assert (op.seconds, op.phases, op.share) == (0, {}, 0)
            else:
                assert op.seconds == pytest.approx((i + 1) * 1e-3)
                assert op.phases == pytest.approx({"product": op.seconds * 0.75, "rest": op.seconds * 0.25})
                assert op.share == pytest.approx(op.bound_s / op.seconds)
        assert step.bound_s == pytest.approx(sum(op.bound_s for op in step.ops))
        assert step.share > 0 and step.seconds > 0  # medians over rounds of what the clock on the wall said
    assert result.limits == LIMITS
    by_name = {op.name: op for op in result.prefill.ops}
    assert (by_name["layers.1.attention"].layer, by_name["layers.1.attention"].arithmetic) == (1, "fp32")
    assert (by_name["lm_head"].layer, by_name["lm_head"].arithmetic) == (None, "int8")
    assert by_name["take_rows"].arithmetic is None and by_name["take_rows"].bound == "cache"


def position_bytes(clock: SetClock) -> float:
    cache = clock.inner.cache  # type: ignore[attr-defined]
    return cache.block_bytes(clock.program) / cache.block_size  # type: ignore[no-any-return]


def test_medians_leave_out_the_round_that_warms_up() -> None:
    workload = dataclasses.replace(WORKLOAD, num_rounds=3)
    result, _ = profile(workload, slower=[100.0, 1.0, 2.0, 50.0])
    assert result.prefill.ops[0].seconds == pytest.approx(2e-3)
    assert result.decode.ops[4].seconds == pytest.approx(6 * 2e-3)  # the second op takes no part


@pytest.mark.parametrize("chunk", [7, 16, 512])
def test_the_steps_are_those_of_a_model_that_reads_and_answers(chunk: int) -> None:
    """The last logits of each user are those of the whole sequence read in one step."""
    workload = dataclasses.replace(WORKLOAD, num_rounds=1)
    result, clock = profile(workload, prefill_chunk_size=chunk, max_seq_len=128)
    num_prefill = -(-60 // chunk)
    assert (result.prefill.num_tokens, result.prefill.num_steps) == (60, num_prefill)
    assert (result.decode.num_tokens, result.decode.num_steps) == (3, 1)
    last_round = clock.steps[-(num_prefill + 3) :]
    assert max(len(batch.token_ids) for batch in last_round) <= chunk
    assert sum(len(batch.logit_rows) for batch in last_round[:num_prefill]) == 3
    prompts = np.concatenate([batch.token_ids for batch in last_round[:num_prefill]]).reshape(3, 20)
    answers = np.stack([batch.token_ids for batch in last_round[num_prefill:]], axis=1)
    whole = np.concatenate([prompts, answers], axis=1)
    fresh = load_model(weights="int8").executor
    for user in range(3):
        table = np.arange(2, dtype=np.int32).reshape(1, 2)
        one = np.ones(1, np.int32)
        logits = fresh.step(StepBatch(whole[user], np.array([0, 23], np.int32), 23 * one, table, 22 * one))
        np.testing.assert_allclose(clock.logits[-1][user], logits[0], rtol=1e-3, atol=1e-3)
    assert not np.array_equal(clock.steps[0].token_ids, last_round[0].token_ids)  # each round has its own


def test_a_target_without_a_clock_says_so() -> None:
    engine = load_model(weights="int8")
    with pytest.raises(TargetError, match="clock"):
        measure_profile(engine, costs_of(engine), MACHINE, WORKLOAD)
    with pytest.raises(ConfigError, match="batch_size"):
        measure_profile(engine, costs_of(engine), MACHINE, Workload(num_users=5))


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_the_cpu_target_times_every_op(weights: str) -> None:
    engine = load_model(target="cpu", weights=weights)
    executor = engine.executor
    assert isinstance(executor, TimedExecutor)
    result = measure_profile(engine, costs_of(engine), MACHINE, WORKLOAD)
    clock = executor.op_seconds()
    assert list(clock) == [op.name for op in executor.program.ops]  # type: ignore[attr-defined]
    native = executor.native.phase_seconds()  # type: ignore[attr-defined]
    assert sum(sum(phases.values()) for phases in clock.values()) == pytest.approx(sum(s for _, s in native))
    assert {phase for phases in clock.values() for phase in phases} == {phase for phase, _ in native}
    for step in (result.prefill, result.decode):
        assert all(op.seconds > 0 for op in step.ops)
        assert step.between_s < step.seconds
    assert sum(op.seconds for op in result.decode.ops) < 1


def test_activate_profiler_counts_the_time_of_real_work() -> None:
    with pytest.raises(TargetError, match="'reference' keeps no clock"):
        load_model(target="reference", activate_profiler=True)
    assert load_model(target="cpu").profiler is None
    engine = load_model(target="cpu", activate_profiler=True)
    profiler = engine.profiler
    assert profiler is not None and str(profiler) == "no step has run"
    engine.add_request(list(range(40)), SamplingParams(max_tokens=3, temperature=0))
    while engine.has_unfinished():
        engine.step()
    seconds = profiler.seconds()
    assert 0 < sum(seconds.values()) <= engine.metrics.execute_s and seconds["lm_head"] > 0
    assert "layers.*.attention" in str(profiler)
    profiler.reset()
    assert not any(profiler.seconds().values())


def test_a_model_without_a_runtime_is_not_loaded() -> None:
    with pytest.raises(ConfigError, match="create_runtimes is False"):
        load_model(create_runtimes=False)
