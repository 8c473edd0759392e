"""Embeddings of prompts: the same bits whatever shares the steps, the blocks or the cache, and beside answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_models import load_model

from qwench.errors import NumericalError, RequestError
from qwench.llm import LLM
from qwench.runtime.engine import Engine
from qwench.runtime.pooling import PoolingParams
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.targets.target import StepBatch

PROMPTS = [np.random.default_rng(i).integers(0, 300, n).tolist() for i, n in enumerate([1, 16, 33, 70, 5])]


def states_of(ids: list[int]) -> np.ndarray:
    """The last hidden state of every token, [n, hidden_size], read in one step by a fresh executor."""
    executor = load_model(target="cpu").executor
    n = len(ids)
    batch = StepBatch(
        np.array(ids, np.int32), np.array([0, n], np.int32), np.array([n], np.int32),
        np.arange(8, dtype=np.int32)[None], np.empty(0, np.int32), None, np.arange(n, dtype=np.int32),
    )  # fmt: skip
    hidden = np.empty((1, n, 64), np.float32)
    executor.step(batch, hidden=hidden)
    return hidden[0]


def run(engine: Engine) -> dict[str, list[Any]]:
    outputs: dict[str, list[Any]] = {}
    while engine.has_unfinished():
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
        engine.check_integrity()
    return outputs


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 7, "max_seq_len": 128}], ids=["whole", "chunks of 7"])
def test_embeddings_are_pooled_states(pooling: Any, options: dict[str, Any]) -> None:
    llm = LLM.from_engine(load_model(target="cpu", **options))
    got = llm.embed(PROMPTS, pooling=pooling, normalize=False)
    assert got.shape == (5, 64) and got.dtype == np.float32
    for row, ids in zip(got, PROMPTS, strict=True):
        states = states_of(ids)
        expected = states[-1] if pooling == "last" else states.astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(row, expected, rtol=0 if pooling == "last" else 1e-5, atol=1e-6)
    again = llm.embed(PROMPTS, pooling=pooling)  # now their prefixes are in the cache
    np.testing.assert_allclose(again, got / np.linalg.norm(got, axis=1)[:, None], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(llm.embed(PROMPTS[2]), axis=1), [1.0], rtol=1e-6)
    assert llm.engine.scheduler.pool.num_free == llm.engine.scheduler.pool.num_blocks


def test_answers_beside_embeddings_are_the_same() -> None:
    params = SamplingParams(max_tokens=12, temperature=0.0)
    alone, together = load_model(target="cpu"), load_model(target="cpu")
    for engine in (alone, together):
        for i, ids in enumerate(PROMPTS):
            engine.add_request(ids, params, f"a{i}")
            if engine is together:
                engine.add_pooled(ids, PoolingParams("last" if i % 2 else "mean"), f"e{i}")
    expected, got = run(alone), run(together)
    for name, outputs in expected.items():
        assert [o.token_id for o in got[name]] == [o.token_id for o in outputs]
    for i, ids in enumerate(PROMPTS):
        [output] = got[f"e{i}"]
        assert output.finish_reason == "stop" and output.token_id is None and output.timings is not None
        states = states_of(ids)
        expected_row = states[-1] if i % 2 else states.mean(axis=0)
        np.testing.assert_allclose(output.embedding, expected_row, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_embeddings_survive_preemption(pooling: Any) -> None:
    """Too few blocks for all at once: answers push the youngest out, which is computed again."""
    engine = load_model(
        target="cpu", max_seq_len=128, kvcache_num_blocks=8, prefill_chunk_size=8, enable_prefix_caching=False
    )
    for i in range(3):
        engine.add_request(PROMPTS[1], SamplingParams(max_tokens=50, temperature=0.0, ignore_eos=True), f"a{i}")
    engine.add_pooled(PROMPTS[3], PoolingParams(pooling), "e")
    [output] = run(engine)["e"]
    states = states_of(PROMPTS[3])
    np.testing.assert_allclose(
        output.embedding, states[-1] if pooling == "last" else states.mean(axis=0), rtol=1e-4, atol=1e-5
    )


def test_a_stream_goes_on_while_texts_are_embedded() -> None:
    llm = LLM.from_engine(load_model(target="cpu"))
    params = SamplingParams(max_tokens=12, temperature=0.0)
    [expected] = llm.generate(PROMPTS[2], params)
    stream = llm.generate(PROMPTS[2], params, stream=True)
    tokens = list(next(stream).token_ids)
    assert llm.embed(PROMPTS).shape == (5, 64)
    tokens += [token for delta in stream for token in delta.token_ids]
    assert tokens == expected.outputs[0].token_ids


def test_what_cannot_be_embedded() -> None:
    llm = LLM.from_engine(load_model(target="cpu", max_seq_len=64, prefill_chunk_size=32))
    for bad, match in (([], "no prompts"), ([[1], []], "empty"), ([[300]], "token id"), ([[1] * 65], "max_seq_len")):
        with pytest.raises(RequestError, match=match):
            llm.embed(bad)
    assert llm.embed([[1] * 64]).shape == (1, 64)  # no room is needed behind it
    with pytest.raises(RequestError, match="last, mean"):
        llm.embed([[1, 2]], pooling="max")  # type: ignore[arg-type]
    assert not llm.engine.has_unfinished()
    request = llm.text_engine.add_pooled([1, 2], PoolingParams())
    [delta] = llm.text_engine.abort(request)
    assert delta.finish_reason == "abort" and delta.is_whole and delta.embedding is None
    assert not llm.text_engine.has_unfinished()


def test_states_that_are_not_finite_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM.from_engine(load_model())
    step = llm.engine.executor.step

    def broken(batch: Any, logits: Any = None, hidden: Any = None, maxima: Any = None) -> Any:
        result = step(batch, logits, hidden, maxima)
        if hidden is not None:
            hidden[:] = np.nan
        return result

    monkeypatch.setattr(llm.engine.executor, "step", broken)
    with pytest.raises(NumericalError):
        llm.embed(PROMPTS)
    assert not llm.engine.has_unfinished()
