"""A Qwen2 checkpoint -> GGUF, for llama.cpp. The weights stay as they are; quantising is llama.cpp's own work.

The same file that llama.cpp's convert_hf_to_gguf.py writes, without torch and hence sooner. A checkpoint without
tokenizer.json gets bytes and numbered names for tokens: llama.cpp opens nothing without a vocabulary. What is different
about a mixture of experts is in experts_gguf_file.py. Needs `gguf`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy.typing as npt

from benchmarks.contenders.experts_gguf_file import add_experts_shape, add_experts_tensors
from benchmarks.safetensors_folder import RawTensor, read_tensors

KINDS = {
    "BF16": gguf.GGMLQuantizationType.BF16,
    "F16": gguf.GGMLQuantizationType.F16,
    "F32": gguf.GGMLQuantizationType.F32,
}


def write_gguf(checkpoint: Path, out: Path) -> int:
    """Writes the model at `out` and returns the bytes of its tensors."""
    config: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
    is_mixture = config["model_type"] == "qwen2_moe"
    writer = gguf.GGUFWriter(out, "qwen2moe" if is_mixture else "qwen2", use_temp_file=is_mixture)
    _add_shape(writer, config)
    _add_vocabulary(writer, checkpoint, config["vocab_size"])
    if is_mixture:
        add_experts_shape(writer, config)
        num_bytes = add_experts_tensors(writer, checkpoint, config)
    else:
        num_bytes = _add_tensors(writer, checkpoint, config["num_hidden_layers"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return num_bytes


def _add_tensors(writer: gguf.GGUFWriter, checkpoint: Path, num_layers: int) -> int:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, num_layers)
    num_bytes = 0
    for tensor in read_tensors(checkpoint):
        name = names.get_name(tensor.name, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ValueError(f"llama.cpp has no tensor for {tensor.name}")
        num_bytes += _add_tensor(writer, name, tensor)
    return num_bytes


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    if config.get("rope_scaling") or config.get("use_sliding_window"):
        raise ValueError("this benchmark writes no GGUF with rope_scaling or sliding windows")
    writer.add_name("benchmark")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    theta = config.get("rope_theta") or config.get("rope_parameters", {})["rope_theta"]
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def _add_vocabulary(writer: gguf.GGUFWriter, checkpoint: Path, vocab_size: int) -> None:
    normal, unused, control = (int(t) for t in (gguf.TokenType.NORMAL, gguf.TokenType.UNUSED, gguf.TokenType.CONTROL))
    tokens = [f"<unused-{i}>" for i in range(vocab_size)]
    types, merges = [unused] * vocab_size, ["a b"]
    path = checkpoint / "tokenizer.json"
    if path.is_file():
        tokenizer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
        known = [(i, text, normal) for text, i in tokenizer["model"]["vocab"].items()]
        known += [(added["id"], added["content"], control) for added in tokenizer["added_tokens"]]
    else:
        known = [(i, _byte_as_text(i), normal) for i in range(min(256, vocab_size))]
    for i, text, kind in known:
        if i < vocab_size:
            tokens[i], types[i] = text, kind
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(vocab_size - 1)
    writer.add_add_bos_token(False)


def _byte_as_text(byte: int) -> str:
    """GPT-2's printable character for a byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return chr(byte) if byte in printable else chr(256 + sum(b not in printable for b in range(byte)))


def _add_tensor(writer: gguf.GGUFWriter, name: str, tensor: RawTensor) -> int:
    """Matrices as stored, vectors (norms and biases) as fp32, which llama.cpp asks for."""
    data: npt.NDArray[Any]
    if len(tensor.shape) > 1:
        kind, data = KINDS[tensor.dtype], tensor.raw.reshape(tensor.shape[0], -1)
    else:
        kind, data = KINDS["F32"], tensor.as_fp32()
    writer.add_tensor(name, data, raw_dtype=kind)
    return data.nbytes
