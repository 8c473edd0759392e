"""Batch invariance on the native CPU target: the same bits alone, in a crowd, in chunks, with and without prefix
reuse, with one thread and two."""

from __future__ import annotations

from typing import Any

import pytest
from engine_models import load_model, run_all

from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.targets.cpu import _native

PARAMS = SamplingParams(max_tokens=24, seed=11, temperature=0.8, logprobs=3)
PROMPT = [(13 * i + i // 50) % 300 for i in range(600)]  # long enough for attention to be split over positions


def answer(
    crowd: int = 0, warm: bool = False, num_threads: int = 1, prompt: list[int] = PROMPT, **options: Any
) -> list[Any]:
    engine = load_model(num_threads=num_threads, batch_size=32, **{"target": "cpu", "max_seq_len": 640} | options)
    try:
        if warm:
            run_all(engine, {engine.add_request(prompt, SamplingParams(max_tokens=1))})
        for i in range(crowd):
            engine.add_request([i + 1] * (3 * i + 1), SamplingParams(max_tokens=40, seed=i))
        name = engine.add_request(prompt, PARAMS)
        result = run_all(engine, {name})[name, 0]
        assert len(result) == 24
        assert (engine.metrics.cached_prompt_tokens > 0) == warm
        assert (engine.metrics.preemptions > 0) == ("kvcache_num_blocks" in options)
        return result
    finally:
        engine.close()


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_same_bits(weights: str) -> None:
    alone = answer(weights=weights)
    assert answer(weights=weights, crowd=31) == alone
    assert answer(weights=weights, warm=True) == alone
    assert answer(weights=weights, num_threads=2) == alone
    for chunk in (7, 16, 100, 600):
        assert answer(weights=weights, prefill_chunk_size=chunk, enable_prefix_caching=False) == alone
    assert answer(weights=weights, crowd=31, prefill_chunk_size=48, kvcache_num_blocks=42) == alone


@pytest.mark.parametrize("variant", _native.supported_variants())
@pytest.mark.parametrize("kv_cache", ["fp32", "bf16", "int16", "int8"])
def test_every_variant(variant: str, kv_cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENCH_KERNELS", variant)
    short: dict[str, Any] = {"kv_cache": kv_cache, "prompt": PROMPT[:75]}
    crowd = 7 if variant == "generic" else 31  # portable kernels take forty times as long
    for weights in ("bf16", "int4"):
        alone = answer(weights=weights, **short)
        assert answer(weights=weights, crowd=crowd, num_threads=2, **short) == alone
        assert answer(weights=weights, prefill_chunk_size=1, **short) == alone
