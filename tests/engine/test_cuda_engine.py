"""An engine over the cuda target's kernels in Triton's interpreter: the reference's tokens, alone and in a crowd."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
from engine_models import TINY_MIXTURE, load_model, packed_model, run_all

from qwench.errors import CapacityError
from qwench.runtime.loading import choose_num_blocks, memory_budget
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.targets.cuda.devices.interpreter import Interpreter
from qwench.targets.cuda.target import MODEL_SHARE

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: pip install 'qwench[cuda]'")
PARAMS = SamplingParams(max_tokens=4, temperature=0, logprobs=2)
PROMPT = list(range(7, 20))


def answer(target: str, crowd: int = 0, params: SamplingParams = PARAMS, **options: Any) -> list[Any]:
    engine = load_model(target=target, max_seq_len=64, activations="fp32", **options)
    try:
        for i in range(crowd):
            engine.add_request([i + 1] * (3 + i), SamplingParams(max_tokens=3, seed=i))
        name = engine.add_request(PROMPT, params)
        return run_all(engine, {name})[name, 0]
    finally:
        engine.close()


def test_tokens_are_the_references_and_bits_do_not_depend_on_the_batch() -> None:
    alone = answer("cuda-interpreter")
    greedy = answer("cuda-interpreter", params=SamplingParams(max_tokens=4, temperature=0))
    assert [token for token, _, _ in greedy] == [token for token, _, _ in alone]
    assert [token for token, _, _ in alone] == [token for token, _, _ in answer("reference")]
    assert answer("cuda-interpreter", crowd=2, prefill_chunk_size=5) == alone


def test_bits_of_mixtures_do_not_depend_on_the_batch() -> None:
    """Whichever experts the neighbours choose."""
    options: dict[str, Any] = {"shape": TINY_MIXTURE, "params": SamplingParams(max_tokens=2, temperature=0, logprobs=2)}
    assert answer("cuda-interpreter", crowd=1, prefill_chunk_size=8, **options) == answer("cuda-interpreter", **options)


def test_the_cache_takes_what_is_free_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed_model("cuda-interpreter", max_seq_len=64, batch_size=1000)
    least = memory_budget(model, 0)
    block_bytes = model.config.cache(1).block_bytes(model.program)
    free = (least.used + 100 * block_bytes) / MODEL_SHARE
    monkeypatch.setattr(Interpreter, "free_bytes", property(lambda self: int(free) + 64))
    assert choose_num_blocks(model) == 100
    monkeypatch.setattr(Interpreter, "free_bytes", property(lambda self: int(free) // 2))
    with pytest.raises(CapacityError, match="Lower max_seq_len"):
        choose_num_blocks(model, 100)


def test_each_rank_s_device_holds_its_share() -> None:
    """Of weights, less than the whole with the embedding, which all need; of each block, its heads."""
    one, two = (
        packed_model("cuda-interpreter", max_seq_len=64, batch_size=1000, tensor_parallel_size=size)
        for size in (None, 2)
    )
    weights = [memory_budget(model, 8 << 20).weights for model in (one, two)]
    assert weights[0] / 2 < weights[1] < weights[0]
    assert choose_num_blocks(two, memory=8 << 20) >= 2 * choose_num_blocks(one, memory=8 << 20)
