"""Qwen3 against transformers' own: greedy tokens, logits, every cache, formats, GGUF, and what judges a model."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="compares with transformers: pip install qwench[hf]")
pytest.importorskip("torch", reason="compares with transformers: pip install qwench[hf]")

import torch
from transformers import AutoTokenizer
from transformers_parity import assert_same_model, load_truth, write_checkpoint

from qwench import LLM, QwenchConfig, QwenchForCausalLM, SamplingParams
from qwench.cli.main import main
from qwench.compiler.compiler import compile_checkpoint

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from gguf_models import write_gguf

DEFAULT_MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"
TEXTS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
NEW = 40


def _shape(heads: int, kv_heads: int, head_dim: int, hidden: int, **more: Any) -> dict[str, Any]:
    shape = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim, "hidden_size": hidden}
    return {"model_type": "qwen3", **shape, **more}


SLIDING = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
CONFIGS = [
    _shape(4, 2, 16, 64),
    _shape(3, 1, 32, 48, tie_word_embeddings=True),
    _shape(6, 6, 10, 50, intermediate_size=70, rms_norm_eps=1e-4),
    _shape(8, 2, 24, 96, num_hidden_layers=3, **SLIDING),
    _shape(7, 1, 128, 72, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    _shape(2, 1, 66, 30, vocab_size=301, intermediate_size=47),
]


@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_greedy(index: int, best_target: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, seed=index, **CONFIGS[index])
    target = "reference" if index == 1 else best_target
    model = QwenchForCausalLM.from_pretrained(
        folder, qwench_target=target, qwench_prefill_chunk_size=8, qwench_kvcache_block_size=16
    )
    assert_same_model(model, load_truth(folder), index, NEW)


@pytest.mark.parametrize(
    ("options", "least"),
    [({"kv_cache": "bf16"}, 0.9999), ({"kv_cache": "int16"}, 0.99999), ({"kv_cache": "int8"}, 0.999),
     ({"activations": "bf16"}, 0.999),
     ({"weights": "int8"}, 0.998), ({"recipe": "accuracy"}, 0.9995), ({"weights": "int4", "group_size": 32}, 0.94)],
    ids=str,
)  # fmt: skip
def test_formats_are_as_near_as_they_are_for_qwen2(
    options: dict[str, Any], least: float, best_target: str, tmp_path: Path
) -> None:
    """The correlation of logits with transformers' fp32; what Qwen2 reaches with the same options is the yardstick."""
    found = {}
    ids = torch.randint(0, 300, (2, 60), generator=torch.Generator().manual_seed(0))
    for model_type in ("qwen2", "qwen3"):
        folder = write_checkpoint(tmp_path / model_type, model_type=model_type, head_dim=32, hidden_size=128)
        with torch.no_grad():
            expected = load_truth(folder)(ids).logits.numpy()
        model = QwenchForCausalLM.from_pretrained(folder, qwench_config={"target": best_target, **options})
        found[model_type] = float(np.corrcoef(model(ids).logits.numpy().ravel(), expected.ravel())[0, 1])
    assert found["qwen3"] > least
    assert 1 - found["qwen3"] < 4 * (1 - found["qwen2"])


@pytest.fixture(scope="module")
def with_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("qwen3"), **_shape(4, 2, 32, 64, vocab_size=2048))
    for name in TEXTS:
        shutil.copyfile(DEFAULT_MODEL / name, folder / name)
    return folder


def test_llm_verify_and_eval(with_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = compile_checkpoint(with_tokenizer, tmp_path / "artifact", QwenchConfig())
    truth = load_truth(with_tokenizer)
    ids = list(range(100, 120))
    theirs = truth.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, 20:].tolist()
    with LLM(artifact.path) as llm:
        [output] = llm.generate([ids], SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True))
    assert output.outputs[0].token_ids == theirs
    capsys.readouterr()
    assert (
        main(["verify", str(artifact.path), "--against", str(with_tokenizer), "--max-tokens", "12", "--json", "-"]) == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] and report["truth"].startswith("transformers")
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a fox. " * 20)
    assert main(["eval", str(artifact.path), "--text", str(text), "--max-tokens", "128", "--json"]) == 0
    perplexity = json.loads(capsys.readouterr().out)["rows"][0]["perplexity"]
    with LLM(artifact.path) as llm:
        assert llm.tokenizer is not None
        tokens = torch.tensor([llm.tokenizer.encode(text.read_text())[:128]])
    with torch.no_grad():
        assert perplexity == pytest.approx(float(truth(tokens, labels=tokens).loss.exp()), rel=1e-4)


def test_gguf(with_tokenizer: Path, tmp_path: Path) -> None:
    write_gguf(with_tokenizer, tmp_path / "a.gguf", lambda name: "BF16")
    ids = [[5, 6, 7, 8]]
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    with LLM(with_tokenizer) as original, LLM(tmp_path / "a.gguf") as converted:
        answers = [llm.generate(ids, params)[0].outputs[0].token_ids for llm in (original, converted)]
    assert answers[0] == answers[1]


# The end of Qwen3's template, where thinking is turned off, and how it finds the last question.
THINKING = """
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content.split('</think>')[-1].lstrip('\\n') if message.role == "assistant"
        and loop.index0 < ns.last_query_index else message.content %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""


@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}, {"enable_thinking": True}], ids=str)
def test_thinking(options: dict[str, bool], with_tokenizer: Path) -> None:
    messages = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "<think>\nA sum.\n</think>\n\n2"},
        {"role": "user", "content": "And 2+2?"},
    ]
    theirs = AutoTokenizer.from_pretrained(with_tokenizer)
    expected = theirs.apply_chat_template(
        messages, chat_template=THINKING, tokenize=False, add_generation_prompt=True, **options
    )
    assert ("A sum." in expected, "</think>" in expected) == (False, options == {"enable_thinking": False})
    params = SamplingParams(max_tokens=1)
    with LLM(with_tokenizer) as llm:
        [output] = llm.chat(messages, params, chat_template=THINKING, **options)
    assert output.prompt == expected
