"""GGUF files of a checkpoint, made with the gguf package as llama.cpp's own converter makes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

from qwench.checkpoint.gguf.gguf_checkpoint import OF_EXPERTS, OF_LAYER, WHOLE


def ggml_name(name: str) -> str:
    """The name that llama.cpp has for a tensor of transformers."""
    for theirs, ours in WHOLE.items():
        if name == f"{ours}.weight":
            return f"{theirs}.weight"
    _, _, layer, rest = name.split(".", 3)
    stem, part = rest.rsplit(".", 1)
    return f"blk.{layer}.{next(theirs for theirs, ours in OF_LAYER.items() if ours == stem)}.{part}"


def write_gguf(
    checkpoint: Path,
    out: Path,
    kind_of: Callable[[str], str],
    *,
    change: Callable[[gguf.GGUFWriter], None] | None = None,
) -> None:
    """checkpoint: a folder with model.safetensors and tokenizer.json. kind_of: ggml name -> type, for matrices.

    change: writes further metadata.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(out, config["model_type"].replace("_", ""))
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    theta = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta", 10000.0)
    writer.add_rope_freq_base(theta)
    add_tokenizer(writer, checkpoint, config["vocab_size"])
    if (chosen := config.get("num_experts_per_tok")) is not None:
        writer.add_expert_count(config.get("num_experts") or config["num_local_experts"])
        writer.add_expert_used_count(chosen)
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_expert_shared_feed_forward_length(config.get("shared_expert_intermediate_size", 0))
    if change is not None:
        change(writer)
    for theirs, values in _stacked(load_file(checkpoint / "model.safetensors")).items():
        is_matrix = values.ndim > 1 and ".ffn_gate_inp" not in theirs
        kind = gguf.GGMLQuantizationType[kind_of(theirs) if is_matrix else "F32"]
        writer.add_tensor(theirs, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _stacked(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By ggml's names, the experts' matrices of a layer as one, and what has one row as a vector: as convert_hf_to_gguf
    of llama.cpp writes them."""
    result: dict[str, np.ndarray] = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in tensors.items():
        values = tensor.astype(np.float32)
        layer, is_expert, rest = name.partition(".mlp.experts.")
        if is_expert:
            expert, projection, _ = rest.split(".")
            kind = next(theirs for theirs, ours in OF_EXPERTS.items() if ours == projection)
            stacks.setdefault(f"blk.{layer.rpartition('.')[2]}.{kind}.weight", {})[int(expert)] = values
        else:
            result[ggml_name(name)] = values.squeeze()
    return result | {name: np.stack([of[i] for i in range(len(of))]) for name, of in stacks.items()}


def add_tokenizer(writer: gguf.GGUFWriter, checkpoint: Path, vocab_size: int) -> None:
    data = json.loads((checkpoint / "tokenizer.json").read_text())
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    tokens = {i: (token, gguf.TokenType.NORMAL) for token, i in data["model"]["vocab"].items()}
    for added in data["added_tokens"]:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]] = added["content"], kind
    listed = [tokens.get(i, (f"[PAD{i}]", gguf.TokenType.UNUSED)) for i in range(vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([token for token, _ in listed])
    writer.add_token_types([kind for _, kind in listed])
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    writer.add_token_merges(merges)
    places = {token: i for i, (token, _) in enumerate(listed)}
    for name, add in (("eos_token", writer.add_eos_token_id), ("pad_token", writer.add_pad_token_id)):
        if (token := config.get(name)) is not None:
            add(places[token])
    template = checkpoint / "chat_template.jinja"
    if template.exists() or config.get("chat_template"):
        writer.add_chat_template(template.read_text() if template.exists() else config["chat_template"])
