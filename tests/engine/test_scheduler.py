"""The scheduler under random traffic, over an executor that reads its own paged cache: whatever happens to blocks,
each request gets the tokens that it gets alone, and at the end every block is free."""

from __future__ import annotations

import random

import pytest
from engine_models import HistoryExecutor, history_engine, load_model, run_all

from qwench.runtime.engine import Engine
from qwench.runtime.sampling.sampling_params import SamplingParams


def random_request(rng: random.Random) -> tuple[list[int], SamplingParams]:
    """Prompts share long prefixes now and then; lengths go from one token to most of the context."""
    stem = [rng.randrange(3)] * rng.choice((0, 0, 16, 40, 64))
    prompt = stem + [rng.randrange(50) for _ in range(rng.choice((1, 3, 15, 16, 17, 60)))]
    params = SamplingParams(
        max_tokens=rng.choice((1, 5, 20, 60)), temperature=rng.choice((0.0, 1.0)), seed=rng.randrange(100),
        logprobs=rng.choice((None, 2)), n=rng.choice((1, 1, 1, 3)), repetition_penalty=rng.choice((1.0, 1.3)),
        stop_token_ids=rng.choice(((), (7,))),
    )  # fmt: skip
    return prompt, params


def alone(engine: Engine, prompt: list[int], params: SamplingParams) -> dict[int, list[object]]:
    """What an idle engine answers: index -> (token, logprobs, reason) per token."""
    name = engine.add_request(prompt, params)
    return {index: outputs for (_, index), outputs in run_all(engine, {name}).items()}


@pytest.mark.parametrize(
    ("seed", "num_blocks", "max_num_seqs", "max_step_tokens", "reuse"),
    [(0, 14, 8, 32, True), (1, 14, 8, 32, False), (2, 12, 4, 7, True), (3, 16, 16, 64, True), (4, 12, 8, 3, True)],
)
def test_random_traffic(seed: int, num_blocks: int, max_num_seqs: int, max_step_tokens: int, reuse: bool) -> None:
    rng = random.Random(seed)
    options = {"max_num_seqs": max_num_seqs, "max_step_tokens": max_step_tokens, "max_seq_len": 190}
    engine = history_engine(num_blocks, enable_prefix_caching=reuse, **options)
    quiet = history_engine(64, **options | {"max_num_seqs": 1}, enable_prefix_caching=False)
    requests = [random_request(rng) for _ in range(60)]
    demand = sum(n.n * -(-(len(p) + (n.max_tokens or 0)) // 16) for p, n in requests)
    assert demand >= 10 * num_blocks

    answers: dict[tuple[str, int], list[object]] = {}
    names: dict[str, tuple[list[int], SamplingParams]] = {}
    aborted: set[str] = set()
    queue = list(requests)
    while queue or engine.has_unfinished():
        for _ in range(rng.choice((0, 0, 1, 6)) if queue else 0):
            if queue:
                request = queue.pop()
                names[engine.add_request(*request)] = request
        if names and rng.random() < 0.05:
            victim = rng.choice(list(names))
            if engine.abort(victim, rng.choice((None, 0))):
                aborted.add(victim)
            engine.check_integrity()
        for output in engine.step():
            answers.setdefault((output.request_id, output.index), []).append(
                (output.token_id, output.logprobs, output.finish_reason)
            )
        engine.check_integrity()

    assert engine.scheduler.pool.num_free == num_blocks
    assert engine.metrics.preemptions > 5
    assert (engine.metrics.cached_prompt_tokens > 200) == reuse
    assert 0 < len(aborted) < len(names) // 2
    for name, (prompt, params) in names.items():
        expected = alone(quiet, prompt, params)
        for index in range(params.n):
            answer = answers.get((name, index), [])
            if name not in aborted:
                assert answer == expected[index]
            assert answer == expected[index][: len(answer)]


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_random_traffic_on_a_model(target: str) -> None:
    """The same with attention over a real cache: bit for bit on the cpu target, which promises it; the reference's
    matrix products round differently from batch to batch."""
    rng = random.Random(0)
    engine = load_model(
        target=target, kvcache_num_blocks=10, max_seq_len=160, batch_size=6, prefill_chunk_size=24, num_threads=2
    )
    quiet = load_model(target=target, max_seq_len=160, batch_size=1, enable_prefix_caching=False)
    requests, answers = {}, {}
    for seed in range(14):
        prompt = [5] * rng.choice((0, 32, 50)) + [rng.randrange(300) for _ in range(rng.choice((1, 16, 24, 40)))]
        temperature = rng.choice((0.0, 0.8)) if target == "cpu" else 0.0
        params = SamplingParams(max_tokens=rng.choice((4, 24)), temperature=temperature, logprobs=0, seed=seed)
        requests[engine.add_request(prompt, params)] = (prompt, params)
    while engine.has_unfinished():
        for output in engine.step():
            answers.setdefault(output.request_id, []).append((output.token_id, output.logprobs, output.finish_reason))
        engine.check_integrity()
    assert engine.metrics.preemptions > 0
    assert engine.metrics.cached_prompt_tokens > 0
    for name, (prompt, params) in requests.items():
        expected = alone(quiet, prompt, params)[0]
        if target == "cpu":
            assert answers[name] == expected
        assert [token for token, _, _ in answers[name]] == [token for token, _, _ in expected]
        ours, theirs = ([logprobs.logprob for _, logprobs, _ in answer] for answer in (answers[name], expected))
        assert ours == pytest.approx(theirs, abs=1e-4)
    for each in (engine, quiet):
        each.close()


def test_oldest_is_never_preempted() -> None:
    engine = history_engine(8, max_seq_len=128, max_num_seqs=4)
    first = engine.add_request([1] * 60, SamplingParams(max_tokens=60, temperature=0))
    for _ in range(5):
        engine.add_request([2] * 40, SamplingParams(max_tokens=40, temperature=0))
    last = {}
    while engine.has_unfinished():
        last |= {o.request_id: o for o in engine.step() if o.finish_reason}
    preemptions = {name: output.timings.num_preemptions for name, output in last.items()}
    assert len(last) == 6
    assert sum(preemptions.values()) == engine.metrics.preemptions > 0
    assert preemptions[first] == 0


def test_order_of_arrival() -> None:
    """With one place, requests are answered one after the other, in their order."""
    engine = history_engine(max_num_seqs=1)
    names = [engine.add_request([i + 1] * (40 - 10 * i), SamplingParams(max_tokens=3)) for i in range(3)]
    ended = []
    while engine.has_unfinished():
        ended += [o.request_id for o in engine.step() if o.finish_reason]
    assert ended == names


def test_running_decodes_go_on_while_a_long_prompt_is_read() -> None:
    engine = history_engine(max_step_tokens=16)
    short = engine.add_request([1], SamplingParams(max_tokens=50, temperature=0))
    engine.step()
    engine.add_request([2] * 150, SamplingParams(max_tokens=1, temperature=0))
    for _ in range(10):
        assert short in {o.request_id for o in engine.step()}
    sizes = [len(batch.token_ids) for batch in engine.executor.steps[1:]]
    assert sizes[:10] == [16] * 10


def test_prefix_is_computed_once() -> None:
    engine = history_engine()
    prompt = list(range(40)) + [3] * 8  # three whole blocks: the last one is computed again for its logits
    run_all(engine, {engine.add_request(prompt, SamplingParams(max_tokens=1))})
    before = engine.metrics.step_tokens
    run_all(engine, {engine.add_request(prompt, SamplingParams(max_tokens=1))})
    assert engine.metrics.step_tokens - before == 16
    before = engine.metrics.step_tokens
    run_all(engine, {engine.add_request([*prompt, 4], SamplingParams(max_tokens=1))})
    assert engine.metrics.step_tokens - before == 1
    before = engine.metrics.step_tokens
    run_all(engine, {engine.add_request(prompt, SamplingParams(max_tokens=1), cache_salt="another tenant")})
    assert engine.metrics.step_tokens - before == 48


def test_generated_tokens_are_reused_too() -> None:
    """The next turn of a conversation finds the blocks of the last one's answer."""
    engine = history_engine()
    [answer] = run_all(engine, {engine.add_request([9] * 10, SamplingParams(max_tokens=31, temperature=0))}).values()
    turn = [9] * 10 + [token for token, _, _ in answer]
    engine.add_request([*turn, 1, 2], SamplingParams(max_tokens=1))
    before = engine.metrics.step_tokens
    run_all(engine)
    assert engine.metrics.step_tokens - before == len(turn) + 2 - 32


def test_executor_sees_no_more_than_the_budget() -> None:
    engine = history_engine(max_step_tokens=16)
    for length in (16, 17, 1, 33):
        engine.add_request([length] * length, SamplingParams(max_tokens=4))
    run_all(engine)
    assert isinstance(engine.executor, HistoryExecutor)
    assert max(len(batch.token_ids) for batch in engine.executor.steps) == 16
