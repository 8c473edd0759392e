"""The cuda target's adapters beside the weights, in Triton's interpreter: PEFT's fp32 tokens, while adapters come and
go."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")

from lora_adapters import load_peft, write_adapter
from test_lora import greedy, tokens_of
from transformers_parity import load_truth, write_checkpoint

from qwench import LLM, SamplingParams

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: pip install 'qwench[cuda]'")
PROMPTS = [[100, 7], [5], [9, 250]]
TINY: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1}  # fmt: skip


def test_tokens_are_peft_s(tmp_path: Path) -> None:
    """Two adapters of different ranks and none in one batch; one leaves, and another comes, amid an answer."""
    base = write_checkpoint(tmp_path / "base", seed=3, **TINY)
    few, many = (write_adapter(base, tmp_path / str(rank), seed=rank, r=rank) for rank in (3, 17))
    truths = [load_peft(base, few), load_truth(base), load_peft(base, many)]
    expected = [greedy(truth, prompt, 3) for truth, prompt in zip(truths, PROMPTS, strict=True)]
    options: dict[str, Any] = {"target": "cuda-interpreter", "activations": "fp32", "max_seq_len": 32}
    with LLM(base, lora={"few": few}, kvcache_num_blocks=8, **options) as llm:
        params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
        stream = llm.generate(PROMPTS[0], params, lora="few", stream=True)
        first = next(stream)
        llm.unload_lora("few")
        llm.load_lora("many", many)
        assert [*first.token_ids, *(token for delta in stream for token in delta.token_ids)] == expected[0][:2]
        llm.load_lora("again", few)
        params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
        assert tokens_of(llm.generate(PROMPTS, params, lora=["again", None, "many"])) == expected
