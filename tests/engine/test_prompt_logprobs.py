"""Log-probabilities of a prompt: those of its own history, whatever shares the steps, the blocks or the cache."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from engine_models import history_engine, history_logits, load_model

from qwench import LLM
from qwench.errors import NumericalError, RequestError
from qwench.runtime.engine import Engine
from qwench.runtime.outputs import TokenLogprobs
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.runtime.scheduler import MAX_EXTRA_ROWS

VOCAB = 50
LENGTHS = (1, 2, 15, 16, 17, 33, 100, 200)
PROMPTS = [np.random.default_rng(i).integers(0, VOCAB, n).tolist() for i, n in enumerate(LENGTHS)]
PARAMS = SamplingParams(max_tokens=3, temperature=0.0, logprobs=2, prompt_logprobs=2)


def truth(prompt: list[int], num_top: int = 2) -> list[TokenLogprobs | None]:
    """In fp64, from the logits of each beginning of the prompt by itself."""
    result: list[TokenLogprobs | None] = [None]
    for i in range(1, len(prompt)):
        row = history_logits(np.array(prompt[:i], np.int32), VOCAB).astype(np.float64)
        logprobs = row - np.log(np.exp(row).sum())
        order = np.argsort(-logprobs, kind="stable")[:num_top]
        result.append(TokenLogprobs(logprobs[prompt[i]], [(int(t), logprobs[t]) for t in order]))
    return result


def assert_same(got: list[TokenLogprobs | None] | None, expected: list[TokenLogprobs | None]) -> None:
    assert got is not None and len(got) == len(expected) and got[0] is None
    for ours, theirs in zip(got[1:], expected[1:]):
        assert ours is not None and theirs is not None
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)
        assert [t for t, _ in ours.top] == [t for t, _ in theirs.top]
        np.testing.assert_allclose([x for _, x in ours.top], [x for _, x in theirs.top], atol=1e-5)


def run(engine: Engine) -> dict[tuple[str, int], list[Any]]:
    outputs: dict[tuple[str, int], list[Any]] = {}
    while engine.has_unfinished():
        for output in engine.step():
            outputs.setdefault((output.request_id, output.index), []).append(output)
        engine.check_integrity()
        assert all(len(batch.logit_rows) <= 8 + MAX_EXTRA_ROWS for batch in engine.executor.steps)  # type: ignore[attr-defined]
    return outputs


@pytest.mark.parametrize(
    "options",
    [{}, {"max_step_tokens": 200}, {"max_step_tokens": 7}, {"enable_prefix_caching": False}],
    ids=str,
)
def test_all_at_once(options: dict[str, Any]) -> None:
    """Twice, so that the second time all prefixes are in the cache; beside plain requests, some with guesses."""
    engine = history_engine(128, **options)
    for turn in range(2):
        for i, prompt in enumerate(PROMPTS):
            engine.add_request(prompt, PARAMS, f"scored {i}")
            plain = dataclasses.replace(PARAMS, prompt_logprobs=None, prompt_lookup_num_tokens=4 * (i % 2))
            engine.add_request(prompt, plain, f"plain {i}")
        outputs = run(engine)
        for i, prompt in enumerate(PROMPTS):
            scored, plain_outputs = outputs[f"scored {i}", 0], outputs[f"plain {i}", 0]
            assert_same(scored[0].prompt_logprobs, truth(prompt))
            assert all(output.prompt_logprobs is None for output in (*scored[1:], *plain_outputs))
            assert [o.token_id for o in scored] == [o.token_id for o in plain_outputs]
            assert scored[-1].timings.num_cached_tokens == 0, turn


@pytest.mark.parametrize("length", [5, 100])
@pytest.mark.parametrize("reuse", [True, False])
def test_samples_share_the_work(length: int, reuse: bool) -> None:
    engine = history_engine(block_size=64, enable_prefix_caching=reuse)
    prompt = np.random.default_rng(length).integers(0, VOCAB, length).tolist()
    engine.add_request(prompt, dataclasses.replace(PARAMS, n=4, temperature=1.0, seed=1), "a")
    order, logits = [], 0
    while engine.has_unfinished():
        for output in engine.step():
            order.append(output.index)
            if output.prompt_logprobs is not None:
                assert_same(output.prompt_logprobs, truth(prompt))
                logits += 1
    assert logits == 1 and order[0] == 0 and sorted(set(order)) == [0, 1, 2, 3]
    assert sum(len(batch.logit_rows) for batch in engine.executor.steps) == length - 1 + 4 * 3  # type: ignore[attr-defined]


def test_after_a_preemption_nothing_is_asked_for_twice() -> None:
    engine = history_engine(11, max_step_tokens=10)
    for i in range(3):
        engine.add_request(PROMPTS[2], SamplingParams(max_tokens=80, temperature=0.0), f"old {i}")
    engine.add_request(PROMPTS[6], dataclasses.replace(PARAMS, max_tokens=20), "scored")
    outputs = run(engine)
    assert engine.metrics.preemptions > 0
    assert_same(outputs["scored", 0][0].prompt_logprobs, truth(PROMPTS[6]))


def test_a_step_has_no_more_rows_than_planned() -> None:
    engine = history_engine(max_step_tokens=200, max_num_seqs=2)
    for i in range(3):
        engine.add_request(PROMPTS[7], PARAMS, str(i))
    most = 0
    while engine.has_unfinished():
        engine.step()
        most = max(most, len(engine.executor.steps[-1].logit_rows))  # type: ignore[attr-defined]
    assert MAX_EXTRA_ROWS <= most <= MAX_EXTRA_ROWS + 2


def test_logits_that_are_not_finite_fail_only_the_request() -> None:
    def broken(tokens: np.ndarray, vocab_size: int) -> Any:
        logits = history_logits(tokens, vocab_size)
        if len(tokens) == 60 and tokens[0] == PROMPTS[6][0]:
            logits[7] = np.nan
        return logits

    engine = history_engine(logits_of=broken)
    engine.add_request(PROMPTS[6], PARAMS, "bad")
    engine.add_request(PROMPTS[5], PARAMS, "good")
    outputs = run(engine)
    [bad] = outputs["bad", 0]
    assert bad.finish_reason == "error" and isinstance(bad.error, NumericalError)
    assert_same(outputs["good", 0][0].prompt_logprobs, truth(PROMPTS[5]))
    assert engine.scheduler.pool.num_free == 64


def test_in_python() -> None:
    """A prompt's log-probabilities are those that its tokens had when they were an answer."""
    llm = LLM.from_engine(load_model(target="cpu"))
    params = SamplingParams(max_tokens=60, temperature=0.0, logprobs=3, ignore_eos=True)
    [first] = llm.generate([5, 6, 7], params)
    assert first.prompt_logprobs is None
    prompt = [5, 6, 7, *first.outputs[0].token_ids]
    [second] = llm.generate(prompt, SamplingParams(max_tokens=1, prompt_logprobs=3))
    assert second.prompt_logprobs is not None and second.prompt_logprobs[3:] == first.outputs[0].logprobs
    deltas = list(llm.generate(prompt, SamplingParams(max_tokens=2, prompt_logprobs=3), stream=True))
    assert deltas[0].prompt_logprobs == second.prompt_logprobs and deltas[0].prompt_token_ids == prompt
    assert deltas[1].prompt_logprobs is None
    with pytest.raises(RequestError, match="prompt_logprobs"):
        SamplingParams(prompt_logprobs=-1)
