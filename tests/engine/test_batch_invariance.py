"""Batch invariance on the native CPU target: the same bits alone, in a crowd, in chunks, with and without prefix
reuse, with one thread and two."""

from __future__ import annotations

from typing import Any

import pytest
from engine_models import load_model, run_all

from qwench.runtime.request import SamplingParams

PARAMS = SamplingParams(max_tokens=24, seed=11, temperature=0.8, logprobs=3)
PROMPT = [(13 * i) % 300 for i in range(70)]


def answer(crowd: int = 0, warm: bool = False, num_threads: int = 1, **options: Any) -> list[Any]:
    engine = load_model(target="cpu", num_threads=num_threads, batch_size=32, max_seq_len=160, **options)
    try:
        if warm:
            run_all(engine, {engine.add_request(PROMPT, SamplingParams(max_tokens=1))})
        for i in range(crowd):
            engine.add_request([i + 1] * (3 * i + 1), SamplingParams(max_tokens=40, seed=i))
        name = engine.add_request(PROMPT, PARAMS)
        result = run_all(engine, {name})[name, 0]
        assert (engine.metrics.cached_prompt_tokens > 0) == warm
        return result
    finally:
        engine.close()


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_same_bits(weights: str) -> None:
    alone = answer(weights=weights)
    assert len(alone) == 24
    assert answer(weights=weights, crowd=31) == alone
    assert answer(weights=weights, warm=True) == alone
    assert answer(weights=weights, num_threads=2) == alone
    for chunk in (1, 7, 16, 64):
        assert answer(weights=weights, prefill_chunk_size=chunk, enable_prefix_caching=False) == alone
    assert answer(weights=weights, crowd=31, prefill_chunk_size=48, kvcache_num_blocks=24) == alone
