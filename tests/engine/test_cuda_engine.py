"""An engine over the cuda target's kernels in Triton's interpreter: the reference's tokens, alone and in a crowd."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
from engine_models import load_model, run_all

from qwench.runtime.sampling_params import SamplingParams

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: pip install 'qwench[cuda]'")
PARAMS = SamplingParams(max_tokens=4, temperature=0, logprobs=2)
PROMPT = list(range(7, 20))


def answer(target: str, crowd: int = 0, **options: Any) -> list[Any]:
    engine = load_model(target=target, max_seq_len=64, **options)
    try:
        for i in range(crowd):
            engine.add_request([i + 1] * (3 + i), SamplingParams(max_tokens=3, seed=i))
        name = engine.add_request(PROMPT, PARAMS)
        return run_all(engine, {name})[name, 0]
    finally:
        engine.close()


def test_tokens_are_the_references_and_bits_do_not_depend_on_the_batch() -> None:
    alone = answer("cuda-interpreter")
    assert [token for token, _, _ in alone] == [token for token, _, _ in answer("reference")]
    assert answer("cuda-interpreter", crowd=2, prefill_chunk_size=5) == alone
