"""Optimum RBLN's table of rules, one test a rule: what is refused, in which words, and what is filled in otherwise."""

from __future__ import annotations

import copy
from typing import Any

import pytest

pytest.importorskip("transformers", reason="qwench.rbln is a face of transformers: pip install qwench[hf]")
pytest.importorskip("torch", reason="qwench.rbln is a face of transformers: pip install qwench[hf]")

from qwench.config import QwenchConfig
from qwench.errors import ConfigError
from qwench.rbln import RBLNDecoderOnlyModelForCausalLMConfig, RBLNQwen2ForCausalLMConfig

MODEL = {"max_position_embeddings": 4096, "num_attention_heads": 14}
LONG = {"max_position_embeddings": 131072, "num_attention_heads": 28}


def resolve(model: dict[str, Any] = MODEL, **options: Any) -> RBLNQwen2ForCausalLMConfig:
    return RBLNQwen2ForCausalLMConfig(**options).resolve(model)


def test_one_class_of_two_names_and_its_positions() -> None:
    assert RBLNQwen2ForCausalLMConfig is RBLNDecoderOnlyModelForCausalLMConfig
    config = RBLNQwen2ForCausalLMConfig(
        2, 65536, True, False, "flash_attn", 4096, 4096, {"weights": "int8"}, 256, 32, tensor_parallel_size=4
    )
    assert config.to_dict() == {
        "batch_size": 2, "max_seq_len": 65536, "use_inputs_embeds": True, "use_attention_mask": False,
        "attn_impl": "flash_attn", "kvcache_partition_len": 4096, "kvcache_block_size": 4096,
        "quantization": {"weights": "int8"}, "prefill_chunk_size": 256, "kvcache_num_blocks": 32, "lora_config": None,
        "tensor_parallel_size": 4, "decoder_batch_sizes": None, "create_runtimes": None, "device": None,
        "activate_profiler": None, "timeout": None,
    }  # fmt: skip


def test_defaults() -> None:
    config = resolve()
    assert config.to_saved() == {
        "batch_size": 1, "max_seq_len": 4096, "use_inputs_embeds": False, "use_attention_mask": True,
        "attn_impl": "eager", "kvcache_partition_len": None, "kvcache_block_size": 4096, "quantization": None,
        "prefill_chunk_size": 128, "kvcache_num_blocks": None, "lora_config": None, "tensor_parallel_size": 1,
            "decoder_batch_sizes": (1,),
    }  # fmt: skip
    assert (config.create_runtimes, config.device, config.activate_profiler, config.timeout) == (
        True,
        "cpu",
        False,
        None,
    )
    assert config == config.resolve(MODEL)


def test_defaults_under_flash_attn() -> None:
    for options in ({"attn_impl": "flash_attn"}, {"kvcache_partition_len": 16384}):
        config = resolve(LONG, **options)
        assert (config.attn_impl, config.kvcache_partition_len, config.kvcache_block_size) == (
            "flash_attn",
            16384,
            16384,
        )
    assert resolve(LONG, kvcache_partition_len=4096).kvcache_block_size == 4096


def test_max_seq_len_comes_from_the_model_or_must_be_given() -> None:
    assert resolve({"n_positions": 1024}).max_seq_len == 1024
    assert resolve({"max_position_embeddings": 512, "n_positions": 1024}).max_seq_len == 512
    assert resolve({}, max_seq_len=300).max_seq_len == 300
    with pytest.raises(ValueError, match="neither max_position_embeddings nor n_positions; give rbln_max_seq_len"):
        resolve({})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be a positive integer"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"batch_size": 1.0}, "batch_size is 1.0"),
        ({"max_seq_len": 0}, "max_seq_len is 0"),
        ({"use_inputs_embeds": "yes"}, "use_inputs_embeds is 'yes'; it must be True or False"),
        ({"use_attention_mask": 0}, "use_attention_mask is 0"),
        ({"attn_impl": "sdpa"}, "attn_impl is 'sdpa'; allowed: eager, flash_attn"),
        ({"attn_impl": "eager", "kvcache_partition_len": 4096}, "'eager' has no partitions"),
        ({"kvcache_partition_len": 0}, "kvcache_partition_len is 0"),
        ({"kvcache_partition_len": 4032}, "kvcache_partition_len is 4032; it must be from 4096 to 32768"),
        ({"kvcache_partition_len": 32832}, "kvcache_partition_len is 32832; it must be from 4096 to 32768"),
        ({"kvcache_partition_len": 8192, "max_seq_len": 20480}, "must be a multiple of kvcache_partition_len, 8192"),
        ({"kvcache_partition_len": 8192, "max_seq_len": 8192}, "at least twice it: pass .*kvcache_partition_len=4096"),
        ({"kvcache_partition_len": 4096, "max_seq_len": 4096}, "'flash_attn' needs at least 8192"),
        ({"attn_impl": "flash_attn", "max_seq_len": 8128}, "'flash_attn' needs at least 8192"),
        ({"kvcache_partition_len": 4096, "kvcache_block_size": 8192}, "must equal kvcache_partition_len, 4096"),
        ({"attn_impl": "flash_attn", "kvcache_block_size": 4096}, "must equal kvcache_partition_len, 16384"),
        ({"attn_impl": "eager", "max_seq_len": 32832}, "attn_impl 'eager' goes to 32768"),
        ({"kvcache_block_size": 0}, "kvcache_block_size is 0"),
        ({"max_seq_len": 64, "kvcache_block_size": 128}, "kvcache_block_size is 128, more than max_seq_len 64"),
        ({"prefill_chunk_size": 0}, "prefill_chunk_size is 0; it must be a positive integer"),
        ({"prefill_chunk_size": 100}, "prefill_chunk_size is 100; it must be a multiple of 64"),
        ({"kvcache_num_blocks": 0}, "kvcache_num_blocks is 0"),
        ({"batch_size": 3, "kvcache_num_blocks": 2}, "each of 3 rows needs 3 blocks of 4096"),
        ({"quantization": "int8"}, "quantization is 'int8'; give a dict of format, weights, activations, kv_caches"),
        ({"quantization": {"weights": "int2"}}, "weights of quantization is 'int2'"),
        ({"quantization": {"weights": "int4", "activations": "fp16"}}, "multiplied by int8 or int16 activations"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size is 0"),
        ({"tensor_parallel_size": 15}, "tensor_parallel_size is 15, more than the model's 14 attention heads"),
        ({"batch_size": 2, "decoder_batch_sizes": [4, 2]}, "decoder_batch_sizes has 4, more than batch_size 2"),
        ({"decoder_batch_sizes": [0]}, "entry of decoder_batch_sizes is 0"),
        ({"create_runtimes": "no"}, "create_runtimes is 'no'"),
        ({"activate_profiler": 1}, "activate_profiler is 1"),
        ({"timeout": 0}, "timeout is 0; it must be a positive number of seconds"),
        ({"device": 0}, "device is 0; allowed: 'cpu'. Numbers name NPUs"),
        ({"device": [0, 1]}, r"device is \[0, 1\]"),
        ({"max_seqlen": 8}, "unknown option 'max_seqlen'; there are: batch_size, max_seq_len"),
        ({"npu": "RBLN-CA25"}, "npu isn't an option here: no NPU is compiled for"),
        ({"num_devices": 4}, "num_devices isn't an option here: write tensor_parallel_size"),
    ],
)
def test_a_broken_rule_is_a_value_error(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        resolve(**options)
    assert isinstance(caught.value, ConfigError)


@pytest.mark.parametrize(
    ("length", "arguments"),
    [
        (131072, "rbln_attn_impl='flash_attn' and rbln_kvcache_partition_len=16384"),
        (40960, "rbln_attn_impl='flash_attn' and rbln_kvcache_partition_len=20480"),
        (33000, "rbln_max_seq_len=32768 and rbln_kvcache_partition_len=4096"),
    ],
)
def test_a_long_checkpoint_is_told_which_two_arguments_to_pass(length: int, arguments: str) -> None:
    model = LONG | {"max_position_embeddings": length}
    with pytest.raises(ValueError, match=f"attn_impl 'eager' goes to 32768: pass {arguments}") as caught:
        resolve(model)
    told = dict(pair.split("=") for pair in arguments.replace("rbln_", "").split(" and "))
    assert resolve(model, **{name: eval(value) for name, value in told.items()}).attn_impl == "flash_attn"
    assert "QwenchForCausalLM has no such limit" in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"max_seq_len": 32768, "attn_impl": "eager"},
        {"max_seq_len": 8192, "kvcache_partition_len": 4096},
        {"max_seq_len": 65536, "kvcache_partition_len": 32768, "kvcache_block_size": 32768},
        {"prefill_chunk_size": 64},
        {"batch_size": 3, "kvcache_num_blocks": 3},
        {"batch_size": 2, "max_seq_len": 1000, "kvcache_block_size": 300, "kvcache_num_blocks": 8},
        {"batch_size": 8, "decoder_batch_sizes": [1, 4, 8]},
        {"tensor_parallel_size": 14},
        {"quantization": {"format": "rbln", "weights": "int4", "activations": "int8", "group_size": 64}},
    ],
)
def test_the_last_values_that_are_allowed(options: dict[str, Any]) -> None:
    config = resolve(**options)
    for name, value in options.items():
        assert getattr(config, name) == (tuple(reversed(value)) if name == "decoder_batch_sizes" else value)


def test_keyword_over_config_over_default_and_nothing_is_mutated() -> None:
    given = {"batch_size": 2, "quantization": {"weights": "int8"}, "decoder_batch_sizes": [1, 2]}
    before = copy.deepcopy(given)
    config = RBLNQwen2ForCausalLMConfig(**given)
    kept = copy.deepcopy(config)
    for rbln_config in (given, config):
        merged = RBLNQwen2ForCausalLMConfig.merged(rbln_config, {"batch_size": 4, "timeout": 3, "max_seq_len": None})
        assert (merged.batch_size, merged.timeout, merged.max_seq_len, merged.prefill_chunk_size) == (4, 3, None, None)
        assert merged.quantization == {"weights": "int8"}
    resolve(**given)
    assert given == before and config == kept
    with pytest.raises(ConfigError, match="unknown option 'max_seqlen'"):
        RBLNQwen2ForCausalLMConfig.merged(config, {"max_seqlen": None})
    with pytest.raises(ConfigError, match="rbln_config is a list; give an RBLNQwen2ForCausalLMConfig or a dict"):
        RBLNQwen2ForCausalLMConfig.merged([], {})  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        config.batch_size = 4  # type: ignore[misc]


def test_what_qwench_makes_of_it() -> None:
    config = resolve(LONG, kvcache_partition_len=8192, batch_size=2, quantization={"weights": "int4", "group_size": 64})
    assert config.to_qwench() == QwenchConfig(
        batch_size=2, max_seq_len=131072, use_inputs_embeds=False, use_attention_mask=True, attn_impl="flash_attn",
        tensor_parallel_size=1,
        kvcache_partition_len=8192, weights="int4", group_size=64, prefill_chunk_size=128, decoder_batch_sizes=(2,),
        create_runtimes=True, device="cpu", activate_profiler=False,
    )  # fmt: skip
    assert config.num_full_blocks == 2 * 16
