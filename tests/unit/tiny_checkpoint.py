"""A tiny Qwen2 checkpoint on disk, written by the safetensors library: what the tests of reading and compiling read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
}


def tiny_tensors(seed: int = 0, tied: bool = True, dtype: Any = ml_dtypes.bfloat16) -> dict[str, np.ndarray]:
    """Every tensor of a model of CONFIG."""
    rng = np.random.default_rng(seed)
    hidden, inter, kv, vocab = 64, 96, 32, 300
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    for i in range(2):
        at = f"model.layers.{i}"
        for name, rows in (("q", hidden), ("k", kv), ("v", kv)):
            shapes[f"{at}.self_attn.{name}_proj.weight"] = (rows, hidden)
            shapes[f"{at}.self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{at}.self_attn.o_proj.weight"] = (hidden, hidden)
        for name, shape in (("gate", (inter, hidden)), ("up", (inter, hidden)), ("down", (hidden, inter))):
            shapes[f"{at}.mlp.{name}_proj.weight"] = shape
        shapes[f"{at}.input_layernorm.weight"] = shapes[f"{at}.post_attention_layernorm.weight"] = (hidden,)
    return {name: (rng.standard_normal(shape) * 0.05).astype(dtype) for name, shape in shapes.items()}


def write_checkpoint(
    folder: Path, tensors: dict[str, np.ndarray] | None = None, num_shards: int = 1, **config: Any
) -> Path:
    """Writes config.json, a generation config, a stand-in tokenizer.json, and the tensors in one or more files."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = tiny_tensors(tied=config.get("tie_word_embeddings", True)) if tensors is None else tensors
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names, weight_map = sorted(tensors), {}
    for i in range(num_shards):
        shard = f"model-{i + 1:05d}-of-{num_shards:05d}.safetensors"
        part = names[i::num_shards]
        save_file({name: tensors[name] for name in part}, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
