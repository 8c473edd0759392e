"""A checkpoint of a published Qwen2 shape with random weights: right for speed and memory, meaningless as language.

Written where no checkpoint was given, so that a benchmark needs no download. Has no tokenizer. Needs qwench's
dependencies.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# hidden size, intermediate size, layers, heads, key-value heads, tied head, vocabulary
SHAPES = {
    "tiny": (256, 640, 2, 4, 2, True, 2048),
    "0.5b": (896, 4864, 24, 14, 2, True, 151936),
    "1.5b": (1536, 8960, 28, 12, 2, True, 151936),
    "7b": (3584, 18944, 28, 28, 4, False, 152064),
}
STANDARD_DEVIATION = 0.02  # what transformers initialises with


def write_checkpoint(shape: str, folder: Path) -> None:
    """Writes `folder` unless an earlier call did; config.json comes last."""
    if (folder / "config.json").exists():
        return
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    config = published_config(shape)
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(_tensor_shapes(config)):
        arrays, file = {}, f"model-{number:05d}.safetensors"
        for name, size in tensors.items():
            values = random.standard_normal(size, dtype=np.float32) * np.float32(STANDARD_DEVIATION)
            arrays[name] = (values + np.float32("norm" in name)).astype(ml_dtypes.bfloat16)
            weight_map[name] = file
        save_file(arrays, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def published_config(shape: str) -> dict[str, Any]:
    hidden, intermediate, layers, heads, kv_heads, is_tied, vocab = SHAPES[shape]
    return {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocab, "tie_word_embeddings": is_tied,
        "max_position_embeddings": 32768, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "use_sliding_window": False,
        "torch_dtype": "bfloat16", "bos_token_id": vocab - 2, "eos_token_id": vocab - 1,
    }  # fmt: skip


def _tensor_shapes(config: dict[str, Any]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Name -> shape, of the ends first, then layer by layer: one file each."""
    hidden, intermediate, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    ends: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        ends["lm_head.weight"] = (vocab, hidden)
    yield ends
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        yield {
            f"{name}.self_attn.q_proj.weight": (hidden, hidden),
            f"{name}.self_attn.q_proj.bias": (hidden,),
            f"{name}.self_attn.k_proj.weight": (kv, hidden),
            f"{name}.self_attn.k_proj.bias": (kv,),
            f"{name}.self_attn.v_proj.weight": (kv, hidden),
            f"{name}.self_attn.v_proj.bias": (kv,),
            f"{name}.self_attn.o_proj.weight": (hidden, hidden),
            f"{name}.mlp.gate_proj.weight": (intermediate, hidden),
            f"{name}.mlp.up_proj.weight": (intermediate, hidden),
            f"{name}.mlp.down_proj.weight": (hidden, intermediate),
            f"{name}.input_layernorm.weight": (hidden,),
            f"{name}.post_attention_layernorm.weight": (hidden,),
        }
