"""Cache groups with sliding windows in the engine: blocks behind a window come free, and nobody's answer changes."""

from __future__ import annotations

import random

import pytest
from engine_models import history_engine, run_all
from test_scheduler import alone, random_request

from qwench.program.cache_groups import most_blocks
from qwench.runtime.sampling.sampling_params import SamplingParams

WINDOWS: list[tuple[int | None, ...]] = [(20,), (None, 20), (None, None, 70)]


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
@pytest.mark.parametrize(("seed", "max_step_tokens", "reuse"), [(0, 32, True), (1, 7, True), (2, 48, False)])
def test_random_traffic(windows: tuple[int | None, ...], seed: int, max_step_tokens: int, reuse: bool) -> None:
    """As in test_scheduler: preempted, sharing prefixes, aborted now and then, each gets the tokens it gets alone."""
    rng = random.Random(seed)
    options = {"max_seq_len": 190, "max_step_tokens": max_step_tokens, "windows": windows}
    num_blocks = most_blocks(windows, 190, 16, max_step_tokens) + 4
    engine = history_engine(num_blocks, enable_prefix_caching=reuse, **options)
    quiet = history_engine(100, **options, max_num_seqs=1, enable_prefix_caching=False)
    requests = {engine.add_request(*request): request for request in (random_request(rng) for _ in range(40))}
    aborted = set(rng.sample(sorted(requests), 4))
    answers: dict[tuple[str, int], list[object]] = {}
    while engine.has_unfinished():
        for output in engine.step():
            answers.setdefault((output.request_id, output.index), []).append(
                (output.token_id, output.logprobs, output.finish_reason)
            )
            if output.request_id in aborted and rng.random() < 0.5:
                engine.abort(output.request_id)
        engine.check_integrity()
    assert engine.scheduler.pool.num_free == num_blocks
    assert engine.metrics.preemptions > 0
    assert (engine.metrics.cached_prompt_tokens > 50) == reuse
    for name, (prompt, params) in requests.items():
        if name not in aborted:
            assert {index: answers[name, index] for index in range(params.n)} == alone(quiet, prompt, params)


def test_guesses_come_back_over_a_window() -> None:
    """Prompt lookup withdraws wrong guesses: what the window sees from before them must still be there."""
    rng = random.Random(3)
    engine, quiet = (history_engine(60, windows=(None, 20), max_step_tokens=n, vocab_size=3) for n in (40, 40))
    for _ in range(6):
        prompt = [rng.randrange(3) for _ in range(rng.choice((5, 40, 90)))]
        answers = []
        for which, guesses in ((engine, 8), (quiet, 0)):
            name = which.add_request(
                prompt, SamplingParams(max_tokens=60, temperature=0, prompt_lookup_num_tokens=guesses)
            )
            answers.append(run_all(which, {name})[name, 0])
        assert answers[0] == answers[1]
    assert 0 < engine.metrics.accepted_tokens < engine.metrics.drafted_tokens


def test_a_long_answer_needs_only_its_window() -> None:
    """600 tokens over 8 blocks of 16: were nothing given back, 38 would be needed."""
    engine = history_engine(8, windows=(20,), max_seq_len=700, max_step_tokens=16)
    assert most_blocks((20,), 700, 16, 16) == 8
    name = engine.add_request([1] * 300, SamplingParams(max_tokens=300, temperature=0))
    used = []
    while engine.has_unfinished():
        engine.step()
        used.append(engine.metrics.blocks_used)
    assert name and max(used) <= 8
    assert engine.metrics.preemptions == 0


def test_a_prefix_is_found_by_its_last_window() -> None:
    """A sliding group needs only the blocks that the next token sees; those before may be gone."""
    engine = history_engine(12, windows=(20,), max_seq_len=400, max_step_tokens=16)
    prompt = [random.Random(5).randrange(50) for _ in range(320)]
    run_all(engine, {engine.add_request(prompt, SamplingParams(max_tokens=1))})
    before = engine.metrics.step_tokens
    longer = engine.add_request([*prompt, 1, 2], SamplingParams(max_tokens=1, logprobs=0, temperature=0))
    answer = run_all(engine)[longer, 0]
    assert engine.metrics.step_tokens - before == 2
    fresh = history_engine(12, windows=(20,), max_seq_len=400, max_step_tokens=16, enable_prefix_caching=False)
    again = fresh.add_request([*prompt, 1, 2], SamplingParams(max_tokens=1, logprobs=0, temperature=0))
    assert run_all(fresh)[again, 0] == answer
