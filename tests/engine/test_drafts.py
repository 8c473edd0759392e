"""A draft model changes how many steps an answer takes and nothing else, however right or wrong its guesses are, and
whatever else happens to requests and blocks meanwhile."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engine_models import (
    FixedCosts,
    HistoryExecutor,
    circling_logits,
    history_engine,
    load_model,
    packed_model,
    run_all,
    with_draft,
)
from test_speculation import (
    GREEDY,
    OPTIONS,
    NamedBlocks,
    answers_of,
    counting_engine,
    random_request,
    successor,
    with_lookup,
)

from qwench.errors import ConfigError, NumericalError, QwenchError
from qwench.runtime.engine import Engine
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.targets.target import Float32

LogitsOf = Callable[[np.ndarray, int], Float32]


def right_with(share: float) -> LogitsOf:
    """Logits of a draft that is the model itself on this share of histories, and something else on the others."""

    def logits(tokens: np.ndarray, vocab_size: int) -> Float32:
        is_right = np.random.Generator(np.random.Philox(key=int(tokens.sum()) + 7 * len(tokens))).random() < share
        own = circling_logits(tokens, vocab_size)
        return own if is_right else np.roll(own, 1)

    return logits


def wrong(tokens: np.ndarray, vocab_size: int) -> Float32:
    return -circling_logits(tokens, vocab_size)


def circling_engine(**options: Any) -> Engine:
    return history_engine(logits_of=circling_logits, **options)


# --- the same answer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name: str) -> None:
    accepted = 0
    for seed, draft in enumerate((right_with(0.5), right_with(0.9), circling_logits)):
        rng = random.Random(seed)
        prompt = [rng.randrange(50) for _ in range(rng.choice((1, 20)))] * 3
        params = SamplingParams(**{"max_tokens": 80, "seed": seed, "logprobs": 3} | OPTIONS[name])
        expected = answers_of(circling_engine(eos_token_ids=(11,)), prompt, params)
        engine = with_draft(circling_engine(eos_token_ids=(11,)), draft)
        for lookup in (0, 8):
            assert answers_of(engine, prompt, with_lookup(params, lookup)) == expected
            accepted += engine.metrics.accepted_tokens
    assert accepted > 0 or name in ("one", "two")  # for which nothing is known yet


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(max_tokens=60, seed=5), SamplingParams(
    max_tokens=60, seed=5, temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.1, logit_bias={3: 4.0})],
    ids=["greedy", "sampled", "penalties"])  # fmt: skip
def test_the_model_itself_as_its_draft_is_always_right(params: SamplingParams) -> None:
    """Sampled too: a guess is drawn by the random number that will choose the token."""
    engine = with_draft(circling_engine(), circling_logits)
    [answer] = answers_of(engine, [1, 2, 3], params).values()
    metrics = engine.metrics
    # Penalties are those of the known tokens, without the guesses before.
    assert metrics.accepted_tokens >= metrics.drafted_tokens * (1 if params.repetition_penalty == 1 else 0.8) > 20
    assert metrics.draft_model_tokens == metrics.drafted_tokens
    assert metrics.draft_model_accepted_tokens == metrics.accepted_tokens
    assert metrics.steps < 25
    assert metrics.steps + metrics.accepted_tokens == len(answer)
    assert metrics.draft_steps >= metrics.drafted_tokens and metrics.draft_s > 0


def test_a_draft_that_is_always_wrong_is_hardly_asked() -> None:
    engine = with_draft(circling_engine(max_seq_len=1024, num_blocks=80), wrong)
    params = dataclasses.replace(GREEDY, max_tokens=900, logprobs=None)
    expected = answers_of(circling_engine(max_seq_len=1024, num_blocks=80), [1, 2, 3], params)
    assert answers_of(engine, [1, 2, 3], params) == expected
    assert engine.metrics.accepted_tokens == 0
    # A tenth and a twentieth of a step for a trial, and it gets a fiftieth of the time.
    assert 10 < engine.metrics.draft_steps < 50 + 900 * 0.02 / 0.15
    assert engine.metrics.drafted_tokens < 200


def test_it_is_noticed_when_a_draft_becomes_right() -> None:
    """As when the text changes: a prompt in the draft's own language."""
    engine = with_draft(
        circling_engine(max_seq_len=1024, num_blocks=80),
        lambda tokens, size: (wrong if len(tokens) < 300 else circling_logits)(tokens, size),
    )
    answers_of(engine, [1, 2, 3], dataclasses.replace(GREEDY, max_tokens=900))
    assert engine.metrics.accepted_tokens > 300


def test_lookup_goes_first() -> None:
    """Where the text repeats itself the draft isn't asked, elsewhere it is."""
    engine = with_draft(counting_engine(), successor)
    answers_of(engine, [1, 2], with_lookup(GREEDY))
    metrics = engine.metrics
    assert 0 < metrics.draft_model_tokens < 10 < metrics.drafted_tokens
    assert metrics.draft_model_accepted_tokens < metrics.accepted_tokens


def test_no_guesses_where_tokens_cost_their_full_share() -> None:
    engine = with_draft(circling_engine(), circling_logits)
    engine.speculation.costs._base, engine.speculation.costs._slope = 0.0, 1.0
    for seed in range(8):
        engine.add_request([seed, 2, 3], dataclasses.replace(GREEDY, max_tokens=100))
    run_all(engine)
    assert engine.metrics.draft_steps < 10  # what is tried


# --- what it follows ----------------------------------------------------------------------------------------------


def followed_blocks_are_right(engine: Engine) -> int:
    """Checks that the draft's cache has what others would take from it, the tokens of named blocks, and those of each
    request that it has computed; returns of how many places."""
    draft, pool, size, count = engine.speculation.draft, engine.scheduler.pool, engine.cache.block_size, 0
    assert draft is not None and isinstance(draft.executor, HistoryExecutor)
    for block in pool.hash_to_block.values():
        at = slice(block * size, block * size + pool.num_followed[block])
        assert (draft.executor.tokens[at] == engine.executor.tokens[at]).all()
        count += pool.num_followed[block]
    for request in engine.scheduler.running:
        if request.following is not None and request.following.num_computed is not None:
            group = draft.group
            at = np.arange(request.first_block[group] * size, request.following.num_computed)
            slots = request.block_table[group, at // size] * size + at % size
            assert (draft.executor.tokens[slots] == request.tokens[at]).all()
            count += len(at)
    return count


def test_prefixes_are_read_once() -> None:
    engine = with_draft(circling_engine(), circling_logits)
    prompt = [i % 40 for i in range(100)]
    params = dataclasses.replace(GREEDY, max_tokens=30)
    first, second = (answers_of(engine, [*prompt, last], params) for last in (1, 1))
    assert first == second
    fed = [len(batch.token_ids) for batch in engine.speculation.draft.executor.steps]
    assert sum(fed) < 100 + 2 * 40 + 16
    followed_blocks_are_right(engine)


@pytest.mark.parametrize("vocab_size", [40, 61])
def test_vocabularies_that_differ_in_padding(vocab_size: int) -> None:
    """Also where the model says tokens that the draft hasn't got, or the draft such as the model hasn't."""
    draft = with_draft(circling_engine(), circling_logits, vocab_size=vocab_size)
    for params in (GREEDY, SamplingParams(max_tokens=60, seed=2, logit_bias={3: 1.0, 49: 2.0})):
        assert answers_of(draft, [1, 49], params) == answers_of(circling_engine(), [1, 49], params)
    assert draft.metrics.draft_steps > 0


def test_beyond_the_drafts_context() -> None:
    engine = with_draft(circling_engine(), circling_logits, max_seq_len=40)
    prompt = [1, 2, 3]
    assert answers_of(engine, prompt, GREEDY) == answers_of(circling_engine(), prompt, GREEDY)
    assert engine.metrics.accepted_tokens > 20
    assert max(int(batch.seq_lens.max()) for batch in engine.speculation.draft.executor.steps) <= 40


def test_scored_prompts_have_no_guesses_until_they_are_scored() -> None:
    params = dataclasses.replace(GREEDY, prompt_logprobs=1)
    engine = with_draft(circling_engine(), circling_logits)
    prompt = [i % 40 for i in range(90)]
    assert answers_of(engine, prompt, params) == answers_of(circling_engine(), prompt, params)
    assert engine.metrics.accepted_tokens > 20


@pytest.mark.parametrize(
    ("windows", "draft_windows"),
    [((None, 20), (None,)), ((None, 20), (None, 20, 50)), ((None,), (20, 70)), ((70,), (20, 40))],
    ids=str,
)
def test_sliding_windows(windows: tuple[int | None, ...], draft_windows: tuple[int | None, ...]) -> None:
    """Of either model: the draft uses the block table that sees furthest."""
    options: dict[str, Any] = {"num_blocks": 40, "windows": windows, "max_step_tokens": 40}
    for seed in range(4):
        rng = random.Random(seed)
        prompt = [rng.randrange(50) for _ in range(rng.choice((5, 100)))]
        engine = with_draft(circling_engine(**options), circling_logits, windows=draft_windows)
        assert answers_of(engine, prompt, GREEDY) == answers_of(circling_engine(**options), prompt, GREEDY)
        assert engine.metrics.accepted_tokens > 0


def test_a_draft_that_falls_behind_a_window() -> None:
    """While it isn't asked the window moves on, and other requests use the blocks that were behind it."""
    options: dict[str, Any] = {"num_blocks": 20, "windows": (20,), "max_step_tokens": 40}
    engine = with_draft(circling_engine(**options), circling_logits, windows=(20, 10))
    prompts = [[i % 40 for i in range(start, start + 90)] for start in (0, 3, 7)]
    params = dataclasses.replace(GREEDY, max_tokens=160)
    names = [engine.add_request(prompt, params) for prompt in prompts]
    answers: dict[str, list[Any]] = {name: [] for name in names}
    while engine.has_unfinished():
        for request in engine.scheduler.running:
            if request.following is not None:  # asked for ten tokens, and then not for a hundred
                request.following.acceptance = 1.0 if request.num_tokens % 110 < 10 else -10.0
        for output in engine.step():
            answers[output.request_id].append((output.token_id, output.logprobs, output.finish_reason))
        engine.check_integrity()
        followed_blocks_are_right(engine)
    assert engine.metrics.accepted_tokens > 10
    quiet = circling_engine(**options)
    for name, prompt in zip(names, prompts, strict=True):
        assert [answers[name]] == list(answers_of(quiet, prompt, params).values())


def test_a_draft_that_sees_further_than_the_cache_keeps() -> None:
    with pytest.raises(ConfigError, match="sees all positions, and the model's cache keeps the last 20"):
        with_draft(circling_engine(windows=(20,)), circling_logits)


# --- when something goes wrong ------------------------------------------------------------------------------------


def not_a_number(tokens: np.ndarray, vocab_size: int) -> Float32:
    return np.full(vocab_size, np.nan, np.float32)


def test_damaged_weights_are_an_error_at_once() -> None:
    with pytest.raises(NumericalError, match="the draft model produces no finite logits"):
        with_draft(circling_engine(), not_a_number)


def test_logits_that_stop_being_numbers(caplog: pytest.LogCaptureFixture) -> None:
    engine = with_draft(circling_engine(), lambda t, n: not_a_number(t, n) if len(t) > 30 else circling_logits(t, n))
    assert answers_of(engine, [1, 2], GREEDY) == answers_of(circling_engine(), [1, 2], GREEDY)
    assert [record.message[:32] for record in caplog.records] == ["the draft model produced logits "]


def test_a_draft_that_fails() -> None:
    """Nothing is hidden: the requests fail with what happened, and the next ones run."""
    engine = with_draft(circling_engine(), circling_logits)
    engine.add_request([1, 2], GREEDY)
    for _ in range(3):
        engine.step()
    engine.speculation.draft.executor.fail_with = OSError("tired")
    [output] = engine.step()
    assert output.finish_reason == "error" and isinstance(output.error, QwenchError) and "tired" in str(output.error)
    engine.check_integrity()
    assert engine.scheduler.pool.num_free == 64
    assert answers_of(engine, [1, 2], GREEDY) == answers_of(circling_engine(), [1, 2], GREEDY)


@pytest.mark.parametrize(
    ("seed", "num_blocks", "max_num_seqs", "max_step_tokens", "draft_step_tokens", "reuse"),
    [(0, 14, 8, 32, 32, True), (1, 14, 8, 32, 9, False), (2, 12, 4, 9, 64, True), (3, 16, 16, 64, 32, True)],
)
def test_random_traffic(
    seed: int, num_blocks: int, max_num_seqs: int, max_step_tokens: int, draft_step_tokens: int, reuse: bool
) -> None:
    """Prompts that share prefixes, preemptions, samples, aborted requests, interrupted steps of either model."""
    rng = random.Random(seed)
    options: dict[str, Any] = {"max_num_seqs": max_num_seqs, "max_seq_len": 190, "eos_token_ids": (11,)}
    quiet = circling_engine(num_blocks=64, max_step_tokens=64, enable_prefix_caching=False, **options)
    engine = with_draft(
        circling_engine(num_blocks=num_blocks, enable_prefix_caching=reuse, max_step_tokens=max_step_tokens, **options),
        right_with(rng.choice((0.7, 0.9))), max_step_tokens=draft_step_tokens,
    )  # fmt: skip
    draft = engine.speculation.draft
    assert draft is not None
    queue, named = [random_request(rng, quiet) for _ in range(50)], NamedBlocks(engine)
    requests: dict[str, Any] = {}
    answers: dict[tuple[str, int], list[object]] = {}
    aborted: set[str] = set()
    num_followed = 0
    while queue or engine.has_unfinished():
        for _ in range(min(rng.choice((0, 0, 1, 6)), len(queue))):
            prompt, params, expected = queue.pop()
            requests[engine.add_request(prompt, params)] = params, expected
        if requests and rng.random() < 0.05:
            victim = rng.choice(list(requests))
            if engine.abort(victim, rng.choice((None, 0))):
                aborted.add(victim)
        executor = rng.choice((engine.executor, draft.executor))
        if engine.has_unfinished() and rng.random() < 0.1:
            executor.fail_with = KeyboardInterrupt()
        try:
            for output in engine.step():
                answers.setdefault((output.request_id, output.index), []).append(
                    (output.token_id, output.logprobs, output.finish_reason)
                )
        except KeyboardInterrupt:
            pass
        engine.check_integrity()
        named.check()
        num_followed = max(num_followed, followed_blocks_are_right(engine))
    metrics = engine.metrics
    assert engine.scheduler.pool.num_free == num_blocks
    assert metrics.preemptions > 0 and num_followed > 100
    assert 40 < metrics.draft_model_accepted_tokens < metrics.draft_model_tokens
    assert metrics.draft_model_tokens < metrics.drafted_tokens
    for name, (params, expected) in requests.items():
        for index in range(params.n):
            answer = answers.get((name, index), [])
            if name not in aborted:
                assert answer == expected[index]
            assert answer == expected[index][: len(answer)]


# --- on models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "kv_cache"), [("bf16", "fp32"), ("int8", "int8"), ("int4", "bf16")])
def test_same_bits_on_a_model(weights: str, kv_cache: str) -> None:
    """The native target with native drafts, one that is the model in a coarser format, and one that is the model."""
    options: dict[str, Any] = {"target": "cpu", "weights": weights, "kv_cache": kv_cache, "max_seq_len": 320}
    plain = load_model(**options)
    coarse = packed_model("cpu", weights="int4" if weights == "int8" else "int8", kvcache_block_size=32)
    for draft, more in ((coarse, {"kvcache_num_blocks": 24, "prefill_chunk_size": 48}), (packed_model(**options), {})):
        engine = load_model(**options, **more, draft=draft, num_threads=2)
        engine.speculation.costs, engine.speculation.draft.costs = FixedCosts(1.0), FixedCosts(0.1, 0.005)
        requests: dict[str, Any] = {}
        for seed in range(6):
            rng = random.Random(seed)
            prompt = [rng.randrange(300) for _ in range(rng.choice((3, 90, 100)))]
            params = SamplingParams(
                max_tokens=80, temperature=(0, 0.4)[seed % 2], seed=seed, logprobs=2, n=1 + seed % 2
            )
            requests[engine.add_request(prompt, params)] = params, answers_of(plain, prompt, params)
        answers = run_all(engine)
        metrics = engine.metrics
        assert metrics.accepted_tokens > 20
        assert (metrics.preemptions > 0) == bool(more)
        # Of sampled tokens, what is nearly certain isn't drawn.
        assert draft is coarse or metrics.accepted_tokens >= 0.98 * metrics.drafted_tokens
        for name, (params, expected) in requests.items():
            assert [answers[name, index] for index in range(params.n)] == list(expected.values())
        engine.close()
    plain.close()


WARM = SamplingParams(max_tokens=80, seed=1, temperature=0.2)


@pytest.mark.parametrize(
    "params", [GREEDY, WARM, dataclasses.replace(WARM, repetition_penalty=1.1)], ids=["greedy", "sampled", "penalty"]
)
def test_chains_are_steps(params: SamplingParams) -> None:
    """Guesses that native code finds one after another, and those of single steps: the same, and as many."""
    options: dict[str, Any] = {"target": "cpu", "weights": "int8", "max_seq_len": 320, "kvcache_block_size": 32}
    counts, links = [], 0
    for has_chain in (False, True):
        engine = load_model(**options, draft=packed_model(**options | {"weights": "int4"}))
        engine.speculation.costs, engine.speculation.draft.costs = FixedCosts(1.0), FixedCosts(0.05, 0.005)
        draft = engine.speculation.draft
        assert draft is not None and draft.chain is not None
        chain = draft.chain

        def counted(*args: Any, chain: Any = chain) -> Any:
            nonlocal links
            found = chain(*args)
            links += len(found.tokens)
            return found

        draft.chain = counted if has_chain else None
        answers = [answers_of(engine, [seed, 2, 3], params) for seed in range(6)]
        metrics = engine.metrics
        counts.append((answers, metrics.steps, metrics.drafted_tokens, metrics.accepted_tokens, metrics.draft_steps))
        engine.close()
    assert counts[0] == counts[1]
    assert counts[0][2] > 50
    assert links > 20 or params.repetition_penalty != 1  # for which tokens are chosen by the caller
