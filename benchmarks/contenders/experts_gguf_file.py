"""A mixture of experts in GPTQ's 4 bits -> the tensors of a GGUF of llama.cpp's `qwen2moe`, value for value.

Reads what `benchmarks.experts` writes: symmetric groups of 128, whose scale four of Q4_0's blocks of 32 then share.
Embedding and head, bf16 there, become Q8_0. Called by gguf_file.py; needs `gguf`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from benchmarks.safetensors_folder import RawTensor, read_tensors

Q4_0, Q8_0 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0
BLOCK, GROUP = 32, 128
ENDS = {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}
# Name within a layer -> GGUF's.
PARTS = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate": "ffn_gate_inp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    **{f"mlp.shared_expert.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")},
}  # fmt: skip
Modules = dict[str, dict[str, RawTensor]]  # module -> what it has: weight, bias, qweight, scales, qzeros


def add_experts_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """Beside what a dense model has. Raises ValueError for a checkpoint in another format than the one that is read."""
    recipe = config.get("quantization_config", {})
    if (recipe.get("quant_method"), recipe.get("bits"), recipe.get("group_size")) != ("gptq", 4, GROUP):
        raise ValueError("this benchmark reads mixtures that `python -m benchmarks.experts` wrote")
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


def add_experts_tensors(writer: gguf.GGUFWriter, checkpoint: Path, config: dict[str, Any]) -> int:
    """Adds all tensors and returns their bytes."""
    modules: Modules = defaultdict(dict)
    for tensor in read_tensors(checkpoint):
        module, _, part = tensor.name.rpartition(".")
        modules[module][part] = tensor
    num_bytes = 0
    for name, data, kind in _tensors(modules, config["num_hidden_layers"], config["num_experts"]):
        writer.add_tensor(name, data, raw_dtype=kind)
        num_bytes += data.nbytes
    return num_bytes


def _tensors(
    modules: Modules, num_layers: int, num_experts: int
) -> Iterator[tuple[str, npt.NDArray[Any], gguf.GGMLQuantizationType | None]]:
    for module, name in ENDS.items():
        (weight,) = modules[module].values()
        values = _values(weight)
        is_table = values.ndim > 1
        yield f"{name}.weight", gguf.quantize(values, Q8_0) if is_table else values, Q8_0 if is_table else None
    for i in range(num_layers):
        for part, name in PARTS.items():
            tensors = modules[f"model.layers.{i}.{part}"]
            if "qweight" in tensors:
                yield f"blk.{i}.{name}.weight", _blocks(tensors), Q4_0
            if "weight" in tensors:
                yield f"blk.{i}.{name}.weight", _values(tensors["weight"]), None
            if "bias" in tensors:
                yield f"blk.{i}.{name}.bias", _values(tensors["bias"]), None
        for part in ("gate", "up", "down"):
            experts = [modules[f"model.layers.{i}.mlp.experts.{e}.{part}_proj"] for e in range(num_experts)]
            yield f"blk.{i}.ffn_{part}_exps.weight", np.stack([_blocks(tensors) for tensors in experts]), Q4_0


def _values(tensor: RawTensor) -> npt.NDArray[np.float32]:
    """As llama.cpp has what it doesn't quantise; the shared expert's gate, [1, hidden], is a vector there."""
    return tensor.as_fp32().reshape([size for size in tensor.shape if size > 1])


def _blocks(tensors: dict[str, RawTensor]) -> npt.NDArray[np.uint8]:
    """[n, k / 32 * 18] of a matrix [n, k]: a scale and 32 codes a block, value = (code - 8) * scale in both formats."""
    words = tensors["qweight"].raw.view(np.uint32).reshape(tensors["qweight"].shape)  # [k / 8, n]
    scales = tensors["scales"].raw.view(np.float16).reshape(tensors["scales"].shape)  # [k / 128, n]
    shifts = np.arange(0, 32, 4, dtype=np.uint32)[:, None]
    codes = (words[:, None] >> shifts & 15).astype(np.uint8).reshape(-1, words.shape[1])  # [k, n]
    halves = codes.T.reshape(words.shape[1], -1, 2, BLOCK // 2)  # a byte has one code of either half of its block
    packed = halves[:, :, 0] | halves[:, :, 1] << 4
    of_block = np.repeat(scales.T, GROUP // BLOCK, axis=1)[..., None].copy().view(np.uint8)
    return np.concatenate([of_block, packed], axis=2).reshape(words.shape[1], -1)
