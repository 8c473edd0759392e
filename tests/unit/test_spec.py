"""config.json -> ModelSpec: published configs, agreement with transformers over random ones, and every complaint."""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_checkpoint import CONFIG

from qwench.checkpoint.experts import ExpertsSpec
from qwench.checkpoint.spec import ModelSpec
from qwench.errors import CheckpointError

# As published on the hub: (config, what must come out). Only the fields that differ from one to the next.
PUBLISHED = {
    "Qwen2.5-0.5B": (
        {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
         "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True, "rope_theta": 1000000.0,
         "max_position_embeddings": 32768, "max_window_layers": 24, "use_sliding_window": False,
         "sliding_window": 32768},
        {"head_dim": 64, "kv_size": 128, "tie_word_embeddings": True},
    ),
    "Qwen2.5-7B-Instruct": (
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
         "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False, "rope_theta": 1000000.0,
         "max_position_embeddings": 32768, "max_window_layers": 28, "use_sliding_window": False,
         "sliding_window": 131072},
        {"head_dim": 128, "kv_size": 512, "tie_word_embeddings": False, "max_position_embeddings": 32768},
    ),
    "Qwen2.5-Math-1.5B": (
        {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
         "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True, "rope_theta": 10000,
         "max_position_embeddings": 4096, "max_window_layers": 21, "use_sliding_window": False,
         "sliding_window": 4096,
         "use_mrope": False, "rope_scaling": None},
        {"head_dim": 128, "max_position_embeddings": 4096},
    ),
    "DeepSeek-R1-Distill-Qwen-32B": (
        {"hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40,
         "num_key_value_heads": 8, "vocab_size": 152064, "tie_word_embeddings": False, "rope_theta": 1000000.0,
         "max_position_embeddings": 131072, "max_window_layers": 64, "use_sliding_window": False,
         "sliding_window": 131072},
        {"head_dim": 128, "q_size": 5120, "num_layers": 64},
    ),
    "Qwen3-0.6B": (
        {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 1024, "intermediate_size": 3072,
         "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
         "vocab_size": 151936, "tie_word_embeddings": True, "rope_theta": 1000000, "max_position_embeddings": 40960,
         "max_window_layers": 28, "use_sliding_window": False, "sliding_window": None, "attention_bias": False,
         "rope_scaling": None},
        {"model_type": "qwen3", "head_dim": 128, "q_size": 2048, "kv_size": 1024},
    ),
    "Qwen1.5-MoE-A2.7B": (
        {"model_type": "qwen2_moe", "architectures": ["Qwen2MoeForCausalLM"], "hidden_size": 2048,
         "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16,
         "vocab_size": 151936, "tie_word_embeddings": False, "rope_theta": 1000000.0, "max_position_embeddings": 8192,
         "max_window_layers": 21, "use_sliding_window": False, "sliding_window": 32768, "decoder_sparse_step": 1,
         "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "num_experts_per_tok": 4,
         "num_experts": 60, "norm_topk_prob": False},
        {"experts": ExpertsSpec(60, 4, 1408, 5632, False, tuple(range(24)))},
    ),
    "Qwen3-30B-A3B": (
        {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048,
         "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
         "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": False, "rope_theta": 1000000.0,
         "max_position_embeddings": 40960, "max_window_layers": 48, "use_sliding_window": False,
         "sliding_window": None, "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 768,
         "num_experts_per_tok": 8, "num_experts": 128, "norm_topk_prob": True, "attention_bias": False},
        {"experts": ExpertsSpec(128, 8, 768, 0, True, tuple(range(48))), "head_dim": 128, "q_size": 4096},
    ),
}  # fmt: skip


def spec_of(**changes: Any) -> ModelSpec:
    return ModelSpec.from_config(CONFIG | changes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name: str) -> None:
    config, expected = PUBLISHED[name]
    spec = ModelSpec.from_config({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], **config})
    for field, value in expected.items():
        assert getattr(spec, field) == value, field
    assert spec.rope.theta == config["rope_theta"] and spec.rope.rope_type == "default"
    assert set(spec.sliding_windows) == {None}
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_sliding_window_by_max_window_layers() -> None:
    spec = spec_of(use_sliding_window=True, sliding_window=16, max_window_layers=1)
    assert spec.sliding_windows == (None, 16)


def test_sliding_window_by_layer_types() -> None:
    kinds = ["sliding_attention", "full_attention"]
    spec = spec_of(use_sliding_window=True, sliding_window=16, max_window_layers=9, layer_types=kinds)
    assert spec.sliding_windows == (16, None)


def test_yarn_in_both_spellings() -> None:
    yarn = {"factor": 4.0, "original_max_position_embeddings": 64}
    old = spec_of(rope_theta=5e5, rope_scaling={"type": "yarn", **yarn})
    new = ModelSpec.from_config(
        {k: v for k, v in CONFIG.items() if k != "rope_theta"}
        | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, **yarn}}
    )
    assert old == new
    assert old.rope.rope_type == "yarn" and old.rope.parameters["factor"] == 4.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"architectures": ["Qwen2ForQuestionAnswering"]}, "qwench reads Qwen2ForCausalLM, Qwen2Model, Qwen2ForSequ"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"model_type": "qwen3", "architectures": None, "attention_bias": True}, "attention_bias is true"),
        ({"model_type": "qwen3"}, "architectures is ['Qwen2ForCausalLM']; of model_type 'qwen3' qwench reads Qwen3For"),
        ({"architectures": ["Qwen2ForSequenceClassification"], "num_labels": 0}, "num_labels"),
        ({"architectures": ["Qwen2ForSequenceClassification"], "id2label": {"a": "b"}}, "id2label must name"),
        ({"architectures": ["Qwen2ForTokenClassification"], "id2label": {"0": "x"}, "num_labels": 2}, "names 1"),
        ({"architectures": "Qwen2Model"}, "architectures must be a list"),
        ({"is_causal": "no"}, "is_causal must be true or false"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 15}, "head_dim"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"vocab_size": 2**40}, "vocab_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps"),
        ({"rope_theta": math.inf}, "rope_theta"),
        ({"rope_theta": "1e6"}, "rope_theta"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"use_sliding_window": "false"}, "use_sliding_window"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 2}, "no window"),
        ({"rope_scaling": {"type": "su", "factor": 2.0}}, "rope_type is 'su'; supported: default, linear, dynamic"),
        ({"rope_scaling": {"type": "dynamic"}}, "factor is missing"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "head_dim": 2}, "head_dim is 2"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": 1}}, "truncate must be true or false"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": 0}},
            "attention_factor must be a positive",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_theta": 1.0}, "rope_theta is 1; yarn"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8}}, "long_factor must be a list of 8"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 7}}, "short_factor must be a list of 8"),
        ({"rope_scaling": {"type": "longrope", "original_max_position_embeddings": 1}}, "longrope needs more than 1"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}},
            "high_freq_factor",
        ),
        ({"rope_scaling": {"type": "proportional", "partial_rotary_factor": 1.5}}, "at most 1"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)
def test_complaints_name_the_field(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        spec_of(**changes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no config.json"), ("{", "JSON"), ("[]", "list"), ("[" * 100_000, "JSON")]
)
def test_unreadable_files(tmp_path: Any, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=words):
        ModelSpec.from_folder(tmp_path)


ROPES: list[dict[str, Any] | None] = [
    None,
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0},
    {"type": "yarn", "factor": 2.5, "original_max_position_embeddings": 64, "beta_fast": 16.0},
    {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7, "mscale_all_dim": 1.2, "truncate": False},
    {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.3, "rope_theta": 3e4},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 64},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "proportional", "factor": 2.0},
]  # fmt: skip


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    kv_heads, ratio, layers = draw(st.integers(1, 3)), draw(st.integers(1, 7)), draw(st.integers(1, 4))
    config: dict[str, Any] = {
        "model_type": draw(st.sampled_from(["qwen2", "qwen3"])),
        "vocab_size": draw(st.integers(1, 500)),
        "hidden_size": kv_heads * ratio * 2 * draw(st.integers(1, 16)),
        "intermediate_size": draw(st.integers(1, 200)),
        "num_hidden_layers": layers,
        "num_attention_heads": kv_heads * ratio,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": draw(st.sampled_from([128, 4096, 131072])),
        "tie_word_embeddings": draw(st.booleans()),
        "use_sliding_window": draw(st.booleans()),
        "sliding_window": draw(st.sampled_from([None, 8, 4096])),
        "max_window_layers": draw(st.integers(0, 5)),
    }
    for key, value in (("rms_norm_eps", 1e-5), ("rope_theta", 5e5), ("head_dim", 32)):
        if draw(st.booleans()):
            config[key] = value
    rope = draw(st.sampled_from(ROPES))
    shared = config["hidden_size"] // config["num_attention_heads"]
    head_dim = config.get("head_dim", 128 if config["model_type"] == "qwen3" else shared)
    assume(head_dim > 2 or rope is None or rope.get("rope_type") != "dynamic")  # refused: transformers divides by 0
    if rope is not None:
        config[draw(st.sampled_from(["rope_scaling", "rope_parameters"]))] = dict(rope)
    return config


@settings(max_examples=60, deadline=None)
@given(configs())
def test_agrees_with_transformers(config: dict[str, Any]) -> None:
    pytest.importorskip("torch", reason="needs qwench[hf] to compare with transformers")
    if version("transformers").startswith("4."):
        pytest.skip("this release of transformers knows no rope_parameters")
    from transformers import AutoConfig
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding  # which Qwen3's equals

    from qwench.program.rope import inverse_frequencies

    spec = ModelSpec.from_config(config)
    theirs = AutoConfig.for_model(**json.loads(json.dumps(config)))
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert spec.head_dim == head_dim
    assert spec.rms_norm_eps == theirs.rms_norm_eps
    assert spec.tie_word_embeddings == theirs.tie_word_embeddings
    assert [w is not None for w in spec.sliding_windows] == [t == "sliding_attention" for t in theirs.layer_types]
    assert set(spec.sliding_windows) <= {None, theirs.sliding_window}
    rotary = Qwen2RotaryEmbedding(theirs)
    inv_freq, factor = inverse_frequencies(spec.rope, spec.head_dim)
    assert factor == pytest.approx(rotary.attention_scaling, rel=1e-12)
    # torch's power is off by one unit in places, and scaling rounds what is made of it once more.
    np.testing.assert_array_max_ulp(inv_freq, rotary.inv_freq.numpy(), maxulp=2)
