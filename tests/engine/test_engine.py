"""Requests through the engine: what is refused, what ends them, what one does to another (nothing)."""

from __future__ import annotations

import numpy as np
import pytest
from engine_models import history_engine, largest_of_groups, load_model, run_all

from qwench.errors import DeadlineError, NumericalError, QwenchError, RequestError
from qwench.runtime.sampling.sampling_params import SamplingParams

GREEDY = SamplingParams(max_tokens=8, temperature=0.0)


@pytest.mark.parametrize(
    ("prompt", "params", "says"),
    [
        ([], SamplingParams(), "empty"),
        ([1, 50], SamplingParams(), "token id from 0 to 49"),
        ([-1], SamplingParams(), "token id"),
        ([1.5], SamplingParams(), "token id"),
        ([1] * 256, SamplingParams(), "256 tokens; with the first new one"),
        ([1] * 200, SamplingParams(max_tokens=57), "max_tokens 57"),
        ([1] * 100, SamplingParams(max_tokens=150), "need 16 cache blocks and there are 12"),
        ([1], SamplingParams(stop_token_ids=[50], max_tokens=1), "vocabulary"),
        ([1], SamplingParams(logit_bias={50: 1.0}, max_tokens=1), "vocabulary"),
    ],
)
def test_impossible_requests(prompt: list[int], params: SamplingParams, says: str) -> None:
    engine = history_engine(12, max_seq_len=256)
    with pytest.raises(RequestError, match=says):
        engine.add_request(prompt, params)
    assert not engine.has_unfinished()


def test_a_name_is_used_once_at_a_time() -> None:
    engine = history_engine()
    engine.add_request([1], GREEDY, "me")
    with pytest.raises(RequestError, match="'me'"):
        engine.add_request([1], GREEDY, "me")
    run_all(engine)
    engine.add_request([1], GREEDY, "me")


def test_full_context() -> None:
    """The answer may fill the context to the last token, and no further."""
    engine = history_engine(4, max_seq_len=64)
    for length, params in ((63, SamplingParams()), (30, SamplingParams()), (60, SamplingParams(max_tokens=4))):
        [answer] = run_all(engine, {engine.add_request([3] * length, params)}).values()
        assert len(answer) == 64 - length
        assert answer[-1][2] == "length"


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 33, 48])
def test_chunk_and_block_borders(length: int) -> None:
    """Prompts of exactly one chunk or block, one more and one less: the tokens of a single big step."""
    prompt = [(7 * i) % 50 for i in range(length)]
    expected = run_all(history_engine(max_step_tokens=256), None)
    engines = [history_engine(max_step_tokens=n, block_size=16) for n in (256, 16, 8, 1)]
    for engine in engines:
        engine.add_request(prompt, GREEDY)
    expected, *others = (run_all(engine) for engine in engines)
    assert all(other == expected for other in others)


def test_samples_of_a_prompt() -> None:
    """n answers: each its own, the first that of n = 1, the prompt's whole blocks computed once."""
    prompt = [1] * 40
    params = SamplingParams(max_tokens=12, seed=5, n=4)
    engine = history_engine()
    engine.add_request(prompt, params)
    answers = run_all(engine)
    assert len(answers) == 4
    tokens = {index: tuple(token for token, _, _ in answer) for (_, index), answer in answers.items()}
    assert len(set(tokens.values())) == 4
    computed = engine.metrics.step_tokens - 4 * 11  # the last token of an answer is never computed
    assert computed == 40 + 3 * 8
    single = history_engine()
    single.add_request(prompt, SamplingParams(max_tokens=12, seed=5))
    assert tuple(token for token, _, _ in run_all(single)["request-0", 0]) == tokens[0]


def test_samples_when_the_first_is_aborted() -> None:
    engine = history_engine(max_step_tokens=16)
    name = engine.add_request([1] * 40, SamplingParams(max_tokens=4, seed=5, n=3))
    engine.step()
    assert [o.finish_reason for o in engine.abort(name, 0)] == ["abort"]
    assert {index for _, index in run_all(engine)} == {1, 2}


def test_seed() -> None:
    def tokens(seed: int | None, crowd: int) -> list[int]:
        engine = history_engine()
        for i in range(crowd):
            engine.add_request([i], SamplingParams(max_tokens=20))
        name = engine.add_request([1, 2], SamplingParams(max_tokens=20, seed=seed))
        [answer] = run_all(engine, {name}).values()
        return [token for token, _, _ in answer]

    assert tokens(3, 0) == tokens(3, 6)
    assert tokens(3, 0) != tokens(4, 0)
    assert tokens(None, 0) != tokens(None, 0)


def test_ends_of_text() -> None:
    free = history_engine()
    free.add_request([1], SamplingParams(max_tokens=40, temperature=0))
    tokens = [token for token, _, _ in run_all(free)["request-0", 0]]
    end = tokens[5]
    first = tokens.index(end)

    def last(eos: tuple[int, ...], params: SamplingParams) -> tuple[int, str, int | None]:
        engine = history_engine(eos_token_ids=eos)
        engine.add_request([1], params)
        count = 0
        while engine.has_unfinished():
            for output in engine.step():
                count += 1
                final = output
        return count, final.finish_reason, final.stop_reason

    assert last((end,), SamplingParams(max_tokens=40, temperature=0)) == (first + 1, "stop", None)
    assert last((), SamplingParams(max_tokens=40, temperature=0, stop_token_ids=[end])) == (first + 1, "stop", end)
    assert last((end,), SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)) == (40, "length", None)
    count, _, _ = last((end,), SamplingParams(max_tokens=40, temperature=0, min_tokens=first + 3))
    assert count >= first + 3


def test_abort_at_any_moment() -> None:
    engine = history_engine(max_num_seqs=2)
    names = [engine.add_request([i] * 20, GREEDY) for i in range(4)]
    assert [o.finish_reason for o in engine.abort(names[3])] == ["abort"]
    engine.step()
    assert engine.abort(names[0])[0].timings.finished_s is not None
    engine.check_integrity()
    assert engine.abort(names[0]) == engine.abort("unknown") == []
    assert {name for name, _ in run_all(engine)} == {names[1], names[2]}
    assert engine.metrics.finished_abort == 2
    assert engine.scheduler.pool.num_free == 64


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_fails_its_request_only(value: float) -> None:
    engine = history_engine()
    good, bad = (engine.add_request([i], GREEDY) for i in (1, 2))
    engine.step()
    step = engine.executor.step

    def poisoned(batch, logits, hidden, maxima):
        result = step(batch, logits, hidden, maxima)
        result[1, 17] = value
        maxima[1] = largest_of_groups(result[1])
        return result

    engine.executor.step = poisoned
    outputs = engine.step()
    engine.executor.step = step
    assert [o.finish_reason for o in outputs] == [None, "error"]
    assert outputs[1].request_id == bad
    assert isinstance(outputs[1].error, NumericalError)
    assert len(run_all(engine)[good, 0]) == 6
    assert engine.metrics.finished_error == 1


def test_executor_failure_leaves_the_engine_usable() -> None:
    engine = history_engine(max_num_seqs=2)
    running = {engine.add_request([i] * 20, GREEDY) for i in (1, 2)}
    waiting = engine.add_request([3] * 20, GREEDY)
    engine.step()
    engine.executor.fail_with = OSError("the machine is tired")
    outputs = engine.step()
    assert {o.request_id for o in outputs} == running
    assert all(o.finish_reason == "error" and isinstance(o.error, QwenchError) for o in outputs)
    assert "the machine is tired" in str(outputs[0].error)
    engine.check_integrity()
    again = engine.add_request([1] * 20, GREEDY)
    answers = run_all(engine)
    fresh = history_engine()
    fresh.add_request([1] * 20, GREEDY)
    assert answers[again, 0] == run_all(fresh)["request-0", 0]
    assert len(answers[waiting, 0]) == 8


def test_interrupt_between_schedule_and_result() -> None:
    """Ctrl-C inside a step loses no token: the step is done again."""
    engine = history_engine()
    engine.add_request([1] * 20, GREEDY)
    engine.step()
    engine.executor.fail_with = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.check_integrity()
    quiet = history_engine()
    quiet.add_request([1] * 20, GREEDY)
    assert run_all(engine)["request-0", 0] == run_all(quiet)["request-0", 0][1:]


def test_a_timeout_fails_what_came_too_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, now = history_engine(), 0.0
    monkeypatch.setattr("qwench.runtime.engine.time.monotonic", lambda: now)
    engine.timeout_s = 10.0
    early = engine.add_request([1] * 20, GREEDY)
    now = 8.0
    assert all(output.error is None for output in engine.step())
    late = engine.add_request([2] * 20, GREEDY)
    now = 11.0
    [error] = [output.error for output in engine.step() if output.request_id == early and output.error]
    assert isinstance(error, DeadlineError) and isinstance(error, TimeoutError)
    assert "timeout of 10.0 seconds" in str(error)
    engine.check_integrity()
    assert {name for name, _ in run_all(engine)} == {late}
    assert engine.metrics.finished_error == 1 and engine.scheduler.pool.num_free == 64


def test_metrics_and_timings() -> None:
    engine = history_engine()
    for _ in range(2):
        engine.add_request([1] * 20, GREEDY)
    done = []
    while engine.has_unfinished():
        done += [o for o in engine.step() if o.finish_reason]
    t = done[0].timings
    assert t.arrival_s <= t.scheduled_s <= t.first_token_s <= t.finished_s
    m = engine.metrics.to_dict()
    assert m["requests"] == m["finished_length"] == m["first_tokens"] == 2
    assert (m["prompt_tokens"], m["generated_tokens"], m["decode_tokens"]) == (40, 16, 14)
    assert (m["num_running"], m["num_waiting"], m["blocks_used"], m["blocks_total"]) == (0, 0, 0, 64)
    assert m["ttft_s"] > 0 and m["decode_s"] > 0 and m["execute_s"] > 0


def test_tokens_of_the_reference_model() -> None:
    """Chunks, neighbours and prefix reuse change nothing about a real model's greedy tokens."""
    prompts = [[1] * 40, [2, 3], list(range(100)), [1] * 40]
    whole = load_model(max_seq_len=160, enable_prefix_caching=False)
    chunked = load_model(max_seq_len=160, prefill_chunk_size=16)
    names = [chunked.add_request(prompt, GREEDY) for prompt in prompts]
    together = run_all(chunked)
    for name, prompt in zip(names, prompts, strict=True):
        [answer] = run_all(whole, {whole.add_request(prompt, GREEDY)}).values()
        assert together[name, 0] == answer
