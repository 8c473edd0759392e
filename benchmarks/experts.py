"""A mixture of experts of a published shape with random weights, to measure the speed of.

    python -m benchmarks.experts FOLDER [--shape a2.7b] [--layers N]
    qwench bench FOLDER --prompt 512
    python -m benchmarks.experts_beside_peers FOLDER --peer-python PEERS/bin/python

The experts, and all else that is multiplied, are int4 in GPTQ's layout, groups of 128, so that the folder has the size
of what it is compiled to: 8 GB for A2.7B, where bf16 would be 28. A layer is written at a time. Random routers choose
every expert alike. No tokenizer, and no meaning.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

GROUP = 128
Tensors = dict[str, npt.NDArray[Any]]
COMMON = {
    "hidden_act": "silu", "vocab_size": 151936, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "tie_word_embeddings": False, "use_sliding_window": False, "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False},
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "a2.7b": {
        "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "hidden_size": 2048,
        "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16,
        "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632, "norm_topk_prob": False,
    },
    "30b-a3b": {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048,
        "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
        "norm_topk_prob": True,
    },
    "tiny": {
        "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "hidden_size": 256, "vocab_size": 2048,
        "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 256, "norm_topk_prob": False,
    },
}  # fmt: skip


class Writer:
    """Random tensors of one shape, the same whenever they are drawn."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.random = config, np.random.default_rng(0)

    def plain(self, *shape: int, mean: float = 0.0) -> npt.NDArray[Any]:
        values = self.random.standard_normal(shape, dtype=np.float32) * np.float32(0.02) + np.float32(mean)
        return values.astype(ml_dtypes.bfloat16)

    def gptq(self, name: str, n: int, k: int) -> Tensors:
        """The parts of a matrix [n, k], of a standard deviation of about 0.02."""
        groups = k // GROUP
        return {
            f"{name}.qweight": np.frombuffer(self.random.bytes(k * n // 2), np.int32).reshape(k // 8, n),
            f"{name}.qzeros": np.full((groups, n // 8), 0x77777777, np.int32),
            f"{name}.scales": self.random.uniform(0.003, 0.006, (groups, n)).astype(np.float16),
        }

    def gated(self, name: str, size: int) -> Tensors:
        hidden = self.config["hidden_size"]
        gate, up = (self.gptq(f"{name}.{part}_proj", size, hidden) for part in ("gate", "up"))
        return gate | up | self.gptq(f"{name}.down_proj", hidden, size)

    def layer(self, name: str) -> Tensors:
        config, hidden = self.config, self.config["hidden_size"]
        head_dim = config.get("head_dim", hidden // config["num_attention_heads"])
        q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
        tensors = {f"{name}.mlp.gate.weight": self.plain(config["num_experts"], hidden)}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{name}.{norm}.weight"] = self.plain(hidden, mean=1.0)
        for part, n, k in (("q", q, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, q)):
            tensors |= self.gptq(f"{name}.self_attn.{part}_proj", n, k)
            if config["model_type"] == "qwen2_moe" and part != "o":
                tensors[f"{name}.self_attn.{part}_proj.bias"] = self.plain(n)
        if config["model_type"] == "qwen3_moe":
            tensors |= {f"{name}.self_attn.{part}_norm.weight": self.plain(head_dim, mean=1.0) for part in "qk"}
        if shared := config.get("shared_expert_intermediate_size"):
            tensors |= self.gated(f"{name}.mlp.shared_expert", shared)
            tensors[f"{name}.mlp.shared_expert_gate.weight"] = self.plain(1, hidden)
        for expert in range(config["num_experts"]):
            tensors |= self.gated(f"{name}.mlp.experts.{expert}", config["moe_intermediate_size"])
        return tensors

    def files(self) -> Iterator[Tensors]:
        vocab, hidden = self.config["vocab_size"], self.config["hidden_size"]
        yield {
            "model.embed_tokens.weight": self.plain(vocab, hidden),
            "model.norm.weight": self.plain(hidden, mean=1.0),
        }
        yield {"lm_head.weight": self.plain(vocab, hidden)}
        for i in range(self.config["num_hidden_layers"]):
            yield self.layer(f"model.layers.{i}")


def write_checkpoint(shape: str, folder: Path, num_layers: int | None = None) -> None:
    config = COMMON | SHAPES[shape] | ({} if num_layers is None else {"num_hidden_layers": num_layers})
    folder.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(Writer(config).files()):
        file = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="a2.7b")
    parser.add_argument("--layers", type=int, metavar="N", help="fewer than there are, for little disk")
    args = parser.parse_args()
    write_checkpoint(args.shape, args.folder, args.layers)


if __name__ == "__main__":
    main()
