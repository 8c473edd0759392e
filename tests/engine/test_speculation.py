"""Prompt lookup changes how many steps an answer takes and nothing else: tokens, log-probabilities and reasons to end
are those without it, whatever else happens to requests and blocks meanwhile."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import pytest
from engine_models import (
    HistoryExecutor,
    circling_logits,
    history_engine,
    largest_of_groups,
    load_model,
    run_all,
)

from qwench.errors import NumericalError
from qwench.runtime.block_pool import hash_block
from qwench.runtime.engine import Engine
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.runtime.scheduler import MAX_EXTRA_ROWS

Request: TypeAlias = "tuple[list[int], SamplingParams, dict[int, list[Any]]]"  # prompt, params, expected answers

GREEDY = SamplingParams(max_tokens=60, temperature=0.0, logprobs=2)
CIRCLE = [1, 2, 3, 4, 5, 6, 7] * 4


def circling_engine(num_blocks: int = 64, **options: Any) -> Engine:
    return history_engine(num_blocks, logits_of=circling_logits, **options)


def with_lookup(params: SamplingParams, num_tokens: int = 8) -> SamplingParams:
    return dataclasses.replace(params, prompt_lookup_num_tokens=num_tokens)


def answers_of(engine: Engine, prompt: list[int], params: SamplingParams) -> dict[int, list[Any]]:
    """index -> (token, logprobs, reason) per token."""
    name = engine.add_request(prompt, params)
    return {index: outputs for (_, index), outputs in run_all(engine, {name}).items()}


def successor(tokens: np.ndarray, vocab_size: int) -> Any:
    """Logits of a model that counts from 1 to 7 and begins again."""
    return -np.abs(np.arange(vocab_size, dtype=np.float32) - (tokens[-1] % 7 + 1))


def counting_engine(num_blocks: int = 64, **options: Any) -> Engine:
    return history_engine(num_blocks, logits_of=successor, **options)


# --- the same answer ----------------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {},
    "cold": {"temperature": 0.3},
    "truncated": {"top_k": 9, "top_p": 0.9, "min_p": 0.01},
    "penalties": {"repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.1},
    "bias": {"logit_bias": {3: 4.0, 9: -100.0}},
    "late_end": {"stop_token_ids": list(range(0, 50, 6)), "min_tokens": 9},
    "end": {"stop_token_ids": list(range(0, 50, 9))},
    "model_end": {"temperature": 0.2},
    "no_end": {"ignore_eos": True, "temperature": 0.2},
    "samples": {"n": 3, "temperature": 0.7},
    "one": {"max_tokens": 1},
    "two": {"max_tokens": 2},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name: str) -> None:
    drafted = 0
    for seed in range(6):
        rng = random.Random(seed)
        prompt = [rng.randrange(50) for _ in range(rng.choice((1, 2, 20)))] * 3
        params = SamplingParams(**{"max_tokens": 80, "seed": seed, "logprobs": 3} | OPTIONS[name])
        expected = answers_of(circling_engine(eos_token_ids=(11,)), prompt, params)
        for num_tokens in (1, 5, 40):
            engine = circling_engine(eos_token_ids=(11,))
            assert answers_of(engine, prompt, with_lookup(params, num_tokens)) == expected
            drafted += engine.metrics.drafted_tokens
    assert drafted > 0 or name == "one"


def test_fewer_steps_for_text_that_repeats() -> None:
    engine = counting_engine()
    [answer] = answers_of(engine, CIRCLE, with_lookup(GREEDY, 16)).values()
    assert [token for token, _, _ in answer] == [i % 7 + 1 for i in range(60)]
    metrics = engine.metrics
    assert metrics.steps < 12
    assert metrics.generated_tokens == 60
    assert metrics.steps + metrics.accepted_tokens == 60
    assert metrics.accepted_tokens == metrics.drafted_tokens  # it never errs here


def test_nothing_is_guessed_unless_asked_for() -> None:
    engine = counting_engine()
    answers_of(engine, CIRCLE, GREEDY)
    assert (engine.metrics.steps, engine.metrics.drafted_tokens) == (60, 0)


def test_text_that_does_not_repeat_costs_few_guesses() -> None:
    """200 random tokens of a large vocabulary, and of a small one, where n-grams recur and mislead."""
    for vocab_size, most in ((5000, 0), (20, 40)):
        engine = history_engine(vocab_size=vocab_size)
        params = SamplingParams(max_tokens=200, temperature=2.0, seed=1, prompt_lookup_num_tokens=16)
        answers_of(engine, [1, 2, 3], params)
        assert engine.metrics.drafted_tokens <= most


def test_counts_of_a_request() -> None:
    engine = counting_engine()
    engine.add_request(CIRCLE, with_lookup(GREEDY))
    engine.add_request([30, 31], GREEDY)
    last = {}
    while engine.has_unfinished():
        last |= {o.request_id: o.timings for o in engine.step() if o.finish_reason}
    guessed, plain = last["request-0"], last["request-1"]
    assert guessed.num_drafted_tokens == engine.metrics.drafted_tokens > 20
    assert guessed.num_accepted_tokens == engine.metrics.accepted_tokens > 20
    assert plain.num_drafted_tokens == plain.num_accepted_tokens == 0


# --- limits -------------------------------------------------------------------------------------------------------


def test_no_more_guesses_than_asked_for_or_than_fit() -> None:
    def most(num_tokens: int, **options: Any) -> int:
        engine = counting_engine(max_seq_len=256, **options)
        answers_of(engine, CIRCLE, with_lookup(dataclasses.replace(GREEDY, max_tokens=200), num_tokens))
        return max(len(batch.logit_rows) for batch in engine.executor.steps) - 1

    assert most(1) == 1
    assert most(5) == 5
    assert most(1000, max_step_tokens=64) == MAX_EXTRA_ROWS
    assert most(1000, max_step_tokens=7) == 6


def test_the_last_token_of_the_context() -> None:
    """Guesses never reach beyond max_tokens or the context, whose last token is never computed."""
    for max_tokens in range(1, 20):
        engine = counting_engine(3, max_seq_len=48)
        params = with_lookup(SamplingParams(max_tokens=max_tokens, temperature=0), 16)
        [answer] = answers_of(engine, CIRCLE, params).values()
        assert [reason for _, _, reason in answer] == [None] * (max_tokens - 1) + ["length"]
        longest = max(int(batch.seq_lens.max()) for batch in engine.executor.steps)
        assert longest == len(CIRCLE) + max_tokens - 1


def test_guesses_preempt_nobody() -> None:
    """Two requests that just fit: guesses borrow blocks that are free, and nobody lacks them later."""
    engine = counting_engine(8, max_seq_len=64)
    for prompt in (CIRCLE, CIRCLE[3:]):
        engine.add_request(prompt, with_lookup(dataclasses.replace(GREEDY, max_tokens=64 - len(prompt)), 16))
    run_all(engine)
    assert engine.metrics.accepted_tokens > 40
    assert engine.metrics.preemptions == 0


def test_an_end_token_is_not_guessed() -> None:
    """What follows it would never be looked at."""
    engine = counting_engine(eos_token_ids=(5,))
    [answer] = answers_of(engine, [*CIRCLE[:-7], 1], with_lookup(GREEDY)).values()
    assert [token for token, _, _ in answer] == [2, 3, 4, 5]
    assert answer[-1][2] == "stop"
    fed = np.concatenate([batch.token_ids for batch in engine.executor.steps[1:]])
    assert 5 not in fed
    assert engine.metrics.accepted_tokens > 0


# --- when something goes wrong in between -------------------------------------------------------------------------


def test_interrupted_step_with_guesses() -> None:
    engine = counting_engine(block_size=16)
    engine.add_request(CIRCLE, with_lookup(GREEDY, 30))
    tokens = [o.token_id for _ in range(2) for o in engine.step()]
    engine.executor.fail_with = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert engine.scheduler.running[0].num_drafts > 0
    engine.check_integrity()
    [answer] = run_all(engine).values()
    assert tokens + [token for token, _, _ in answer] == [i % 7 + 1 for i in range(60)]
    assert engine.scheduler.pool.num_free == 64


def test_failed_step_with_guesses() -> None:
    engine = counting_engine()
    engine.add_request(CIRCLE, with_lookup(GREEDY, 30))
    for _ in range(2):
        engine.step()
    engine.executor.fail_with = OSError("tired")
    assert [o.finish_reason for o in engine.step()] == ["error"]
    engine.check_integrity()
    assert engine.scheduler.pool.num_free == 64


@pytest.mark.parametrize("row", range(5))
def test_nan_in_one_row(row: int) -> None:
    """Tokens before it are given out, then the request fails; behind a wrong guess nobody looks."""
    engine = counting_engine()
    engine.add_request(CIRCLE, with_lookup(GREEDY, 4))
    for _ in range(8):
        engine.step()
    step = engine.executor.step

    def poisoned(batch: Any, logits: Any, hidden: Any, maxima: Any) -> Any:
        result = step(batch, logits, hidden, maxima)
        assert len(result) == 5
        result[2] = 0
        result[2, 40] = 1  # not the token that was guessed
        result[row, 17] = np.nan
        for i, logit_row in enumerate(result):
            maxima[i] = largest_of_groups(logit_row)
        return result

    engine.executor.step = poisoned
    outputs = engine.step()
    engine.executor.step = step
    if row > 2:
        assert [o.finish_reason for o in outputs] == [None] * 3
        assert outputs[-1].token_id == 40
    else:
        assert [o.finish_reason for o in outputs] == [None] * row + ["error"]
        assert isinstance(outputs[-1].error, NumericalError)
    engine.check_integrity()


# --- random traffic -----------------------------------------------------------------------------------------------


class Oracle:
    """Guesses like a lookup, but knows the answer, and tells it or something else at random."""

    def __init__(self, prompt: list[int], answer: list[Any], rng: random.Random) -> None:
        self.text = prompt + [token for token, _, _ in answer]
        self.rng, self.share_right = rng, rng.choice((0.0, 0.5, 0.9, 1.0))

    def has_draft(self, num_tokens: int) -> bool:
        return True

    def propose(self, num_tokens: int, limit: int) -> Iterator[tuple[int, float]]:
        for at in range(num_tokens, num_tokens + limit):
            is_right = at < len(self.text) and self.rng.random() < self.share_right
            yield self.text[at] if is_right else self.rng.randrange(50), 1.0


def add_with_oracle(engine: Engine, request: Request, rng: random.Random) -> str:
    prompt, params, expected = request
    name = engine.add_request(prompt, params)
    for index, sample in engine.requests[name].items():
        if params.prompt_lookup_num_tokens:
            sample.lookup = Oracle(prompt, expected[index], rng)
    return name


def random_request(rng: random.Random, quiet: Engine) -> Request:
    """A prompt, what is asked of it, and the answers that it gets alone and without guesses."""
    stem = [rng.randrange(3)] * rng.choice((0, 0, 16, 40, 64))
    prompt = stem + [rng.randrange(50) for _ in range(rng.choice((1, 3, 15, 16, 17, 60)))]
    options = OPTIONS[rng.choice(list(OPTIONS))]
    more = {"max_tokens": rng.choice((12, 20, 60)), "seed": rng.randrange(100), "logprobs": rng.choice((None, 2))}
    params = SamplingParams(**more | options)
    return prompt, with_lookup(params, rng.choice((0, 1, 4, 16))), answers_of(quiet, prompt, params)


class NamedBlocks:
    """Checks at each step that what the cache holds under a name is what the name says."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.parents = engine, {b""}

    def check(self) -> None:
        executor, pool = self.engine.executor, self.engine.scheduler.pool
        assert isinstance(executor, HistoryExecutor)
        size = self.engine.cache.block_size
        self.parents |= set(pool.hash_to_block)
        for name, block in pool.hash_to_block.items():
            content = executor.tokens[block * size : (block + 1) * size]
            assert any(hash_block(parent, content) == name for parent in self.parents)


@pytest.mark.parametrize(
    ("seed", "num_blocks", "max_num_seqs", "max_step_tokens", "reuse"),
    [(0, 14, 8, 32, True), (1, 14, 8, 32, False), (2, 12, 4, 9, True), (3, 16, 16, 64, True), (4, 12, 8, 3, True)],
)
def test_random_traffic(seed: int, num_blocks: int, max_num_seqs: int, max_step_tokens: int, reuse: bool) -> None:
    rng = random.Random(seed)
    options: dict[str, Any] = {"max_num_seqs": max_num_seqs, "max_seq_len": 190, "eos_token_ids": (11,)}
    engine = history_engine(num_blocks, enable_prefix_caching=reuse, max_step_tokens=max_step_tokens, **options)
    quiet = history_engine(64, max_step_tokens=64, enable_prefix_caching=False, **options | {"max_num_seqs": 1})
    queue = [random_request(rng, quiet) for _ in range(60)]
    demand = sum(-(-(len(r[0]) + len(answer)) // 16) for r in queue for answer in r[2].values())
    assert demand >= 10 * num_blocks
    named = NamedBlocks(engine)
    answers: dict[tuple[str, int], list[object]] = {}
    requests: dict[str, Request] = {}
    aborted: set[str] = set()
    while queue or engine.has_unfinished():
        for _ in range(rng.choice((0, 0, 1, 6)) if queue else 0):
            if queue:
                request = queue.pop()
                requests[add_with_oracle(engine, request, rng)] = request
        if requests and rng.random() < 0.05:
            victim = rng.choice(list(requests))
            if engine.abort(victim, rng.choice((None, 0))):
                aborted.add(victim)
            engine.check_integrity()
        if engine.has_unfinished() and rng.random() < 0.05:
            engine.executor.fail_with = KeyboardInterrupt()
            with pytest.raises(KeyboardInterrupt):
                engine.step()
            engine.check_integrity()
        for output in engine.step():
            answers.setdefault((output.request_id, output.index), []).append(
                (output.token_id, output.logprobs, output.finish_reason)
            )
        engine.check_integrity()
        assert all(request.num_drafts == 0 for request in engine.scheduler.running)
        named.check()

    metrics = engine.metrics
    assert engine.scheduler.pool.num_free == num_blocks
    assert metrics.preemptions > 1
    assert metrics.accepted_tokens > 40
    assert metrics.drafted_tokens > metrics.accepted_tokens + 20
    assert (metrics.cached_prompt_tokens > 200) == reuse
    assert 0 < len(aborted) < len(requests) // 2
    for name, (_, params, expected) in requests.items():
        for index in range(params.n):
            answer = answers.get((name, index), [])
            if name not in aborted:
                assert answer == expected[index]
            assert answer == expected[index][: len(answer)]


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("kv_cache", ["fp32", "int16"])
def test_same_bits_on_a_model(weights: str, kv_cache: str) -> None:
    """The native target, whose logits must not change with the number of tokens in a step."""
    options: dict[str, Any] = {"target": "cpu", "weights": weights, "kv_cache": kv_cache, "max_seq_len": 320}
    plain = load_model(**options)
    crowded = load_model(**options, kvcache_num_blocks=24, prefill_chunk_size=48, num_threads=2)
    requests: dict[str, Request] = {}
    for seed in range(8):
        rng = random.Random(seed)
        prompt = [rng.randrange(300) for _ in range(rng.choice((3, 30, 100)))]
        params = SamplingParams(max_tokens=90, temperature=(0.0, 0.4)[seed % 2], seed=seed, logprobs=2, n=1 + seed % 2)
        request = prompt, with_lookup(params, 16), answers_of(plain, prompt, params)
        requests[add_with_oracle(crowded, request, rng)] = request
    answers = run_all(crowded)
    assert crowded.metrics.preemptions > 0
    assert crowded.metrics.accepted_tokens > 100
    for name, (_, params, expected) in requests.items():
        assert [answers[name, index] for index in range(params.n)] == list(expected.values())
    for engine in (plain, crowded):
        engine.close()
