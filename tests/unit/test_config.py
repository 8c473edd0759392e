"""QwenchConfig: each option's rule, the one precedence, what an artifact keeps, and Optimum RBLN's `quantization`."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from tiny_checkpoint import CONFIG

from qwench.checkpoint.spec import ModelSpec
from qwench.config import RUNTIME_OPTIONS, QwenchConfig
from qwench.errors import ConfigError

SPEC = ModelSpec.from_config(CONFIG)  # 128 positions


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be a positive integer"),
        ({"batch_size": True}, "batch_size is True"),
        ({"max_seq_len": 0}, "max_seq_len is 0"),
        ({"max_seq_len": 4096.0}, "max_seq_len is 4096.0"),
        ({"prefill_chunk_size": -128}, "prefill_chunk_size is -128"),
        ({"kvcache_num_blocks": 0}, "kvcache_num_blocks is 0"),
        ({"kvcache_block_size": 24}, "kvcache_block_size is 24; it must be a multiple of 16"),
        ({"kvcache_partition_len": 0}, "kvcache_partition_len is 0"),
        ({"kvcache_partition_len": 100}, "kvcache_partition_len is 100; it must be a multiple of 64"),
        ({"attn_impl": "sdpa"}, "attn_impl is 'sdpa'; allowed: eager, flash_attn"),
        ({"attn_impl": "eager", "kvcache_partition_len": 512}, "'eager' has no partitions"),
        ({"use_inputs_embeds": 1}, "use_inputs_embeds is 1; it must be True or False"),
        ({"use_attention_mask": "yes"}, "use_attention_mask is 'yes'"),
        ({"create_runtimes": 0}, "create_runtimes is 0"),
        ({"activate_profiler": 1}, "activate_profiler is 1"),
        ({"device": 0}, "device is 0; allowed: cpu"),
        ({"device": "cuda"}, "device is 'cuda'; allowed: cpu"),
        ({"timeout": 0}, "timeout is 0; it must be a positive number of seconds"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"decoder_batch_sizes": []}, "decoder_batch_sizes is empty"),
        ({"decoder_batch_sizes": [4, 0]}, "entry of decoder_batch_sizes is 0"),
        ({"decoder_batch_sizes": 4}, "decoder_batch_sizes is 4; it must be a list"),
        ({"quantization": "int8"}, "quantization is 'int8'; give a dict of format, weights"),
        ({"quantization": {"weight": "int8"}}, "quantization has 'weight'"),
        ({"quantization": {"kv_caches": "bf16"}}, "doesn't say weights"),
        ({"quantization": {"weights": "fp8"}}, "weights of quantization is 'fp8'; allowed: bf16, int8, int4"),
        ({"quantization": {"weights": "int4", "activations": "fp16"}}, "multiplied by int8 or int16 activations"),
        (
            {"quantization": {"weights": "bf16", "activations": "int8"}},
            "'int8' with weights 'bf16', which are multiplied by fp32 or bf16",
        ),
        ({"activations": "fp16"}, "activations is 'fp16'; allowed: fp32, bf16, int8, int16"),
        ({"quantization": {"weights": "int8", "kv_caches": "fp16"}}, "kv_caches of quantization is 'fp16'"),
        ({"quantization": {"weights": "int8", "format": "gptq"}}, "format of quantization is 'gptq'"),
        ({"quantization": {"weights": "int8"}, "weights": "int4"}, "weights is 'int4', but quantization says 'int8'"),
        ({"group": 128}, "unknown option 'group'; there are: weights, head_weights"),
    ],
)
def test_each_rule_has_its_error(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        QwenchConfig.from_dict(options)
    with pytest.raises(ValueError):
        QwenchConfig.from_dict(options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 2, "decoder_batch_sizes": [4, 1]}, "decoder_batch_sizes has 4, more than batch_size 2"),
        ({"weights": "int8", "activations": "bf16"}, "activations is 'bf16', but integer weights are multiplied by"),
        ({"activations": "int16"}, "activations is 'int16', but bf16 weights are multiplied by floats; say weights"),
        ({"recipe": "accuracy", "weights": "bf16", "activations": "int8"}, "but bf16 weights are multiplied by floats"),
        ({"kvcache_num_blocks": 3}, "can't hold one sequence of max_seq_len 128; give at least 4 blocks"),
    ],
)
def test_options_that_contradict_each_other_for_this_model(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        QwenchConfig(**options).resolve(SPEC)


def test_defaults_are_filled_into_a_new_object() -> None:
    config = QwenchConfig()
    resolved = config.resolve(SPEC)
    assert config == QwenchConfig() and resolved == resolved.resolve(SPEC)
    unset = {name for name, value in resolved.to_dict().items() if value is None}
    assert unset == {
        "recipe", "overrides", "calibrate", "requantize", "merged_lora", "rope_scaling", "kvcache_num_blocks", "memory",
        "timeout", "tensor_parallel_size", "shares",
    }  # fmt: skip
    assert (resolved.attn_impl, resolved.kvcache_partition_len, resolved.partition_len) == ("flash_attn", 512, 128)
    assert (resolved.max_seq_len, resolved.batch_size, resolved.decoder_batch_sizes) == (128, 32, (32,))
    assert resolved.use_inputs_embeds and resolved.use_attention_mask and resolved.create_runtimes
    assert (resolved.activations, resolved.kv_cache) == ("fp32", "fp32")
    assert resolved.device == "cpu" and resolved.activate_profiler is False


def test_eager_is_one_partition() -> None:
    eager = QwenchConfig(attn_impl="eager", max_seq_len=1000).resolve(SPEC)
    assert eager.kvcache_partition_len is None and eager.partition_len == 1024
    assert QwenchConfig(kvcache_partition_len=192, max_seq_len=1000).resolve(SPEC).partition_len == 192


def test_keyword_over_config_over_default() -> None:
    given = {"weights": "int8", "max_seq_len": 64, "decoder_batch_sizes": [1, 4]}
    before = json.dumps(given)
    merged = QwenchConfig.merged(given, {"max_seq_len": 48, "weights": None})
    assert (merged.weights, merged.max_seq_len, merged.batch_size) == ("int8", 48, None)
    assert merged.decoder_batch_sizes == (4, 1)
    assert json.dumps(given) == before
    config = QwenchConfig(**given)
    assert QwenchConfig.merged(config, {"max_seq_len": 48}) == merged
    assert config == QwenchConfig(**given)
    assert QwenchConfig.merged(config, {"quantization": {"weights": "int4"}}).weights == "int4"
    assert QwenchConfig.merged({"quantization": {"weights": "int4"}}, {"weights": "bf16"}).weights == "bf16"
    for unknown in ({"weight": "int8"}, {"weight": None}):
        with pytest.raises(ConfigError, match="unknown option 'weight'"):
            QwenchConfig.merged(None, unknown)


def test_quantization_is_four_options_in_one() -> None:
    quantization = {"format": "rbln", "weights": "int4", "activations": "int8", "kv_caches": "fp32", "group_size": 64}
    config = QwenchConfig(quantization=quantization)
    assert config == QwenchConfig(weights="int4", activations="int8", kv_cache="fp32", group_size=64)
    assert dataclasses.replace(config, batch_size=2).weights == "int4"
    assert "quantization" not in config.to_dict()


def test_an_artifact_keeps_no_option_of_a_run() -> None:
    config = QwenchConfig(timeout=5, create_runtimes=False, activate_profiler=True, device="cpu", batch_size=3)
    saved = config.resolve(SPEC).to_saved()
    assert not set(saved) & set(RUNTIME_OPTIONS) and set(saved) | set(RUNTIME_OPTIONS) == set(config.to_dict())
    read = QwenchConfig.from_dict(json.loads(json.dumps(saved))).resolve(SPEC)
    assert read == QwenchConfig(batch_size=3).resolve(SPEC)
