"""ModelSpec -> Program: Qwen3 and its mixtures. It has norms of each head's query and key where Qwen2 has biases."""

from __future__ import annotations

from qwench.checkpoint.spec import ModelSpec
from qwench.program.builder import Builder
from qwench.program.mlp import mlp
from qwench.program.ops import Program


def build_qwen3(spec: ModelSpec) -> Program:
    """The forward pass of a Qwen3 decoder for one step: tokens in, logits and hidden states of the asked rows out."""
    b = Builder(spec)
    x = b.embed()
    for i in range(spec.num_layers):
        at, source = f"layers.{i}", f"model.layers.{i}"
        b.take_rows(f"{at}.hidden", x, "hidden")
        h = b.norm(f"{at}.attn_norm", x, f"{source}.input_layernorm")
        q = b.linear(f"{at}.q", h, f"{source}.self_attn.q_proj", spec.q_size)
        q = b.head_norm(f"{at}.q_norm", q, f"{source}.self_attn.q_norm")
        k = b.linear(f"{at}.k", h, f"{source}.self_attn.k_proj", spec.kv_size)
        k = b.head_norm(f"{at}.k_norm", k, f"{source}.self_attn.k_norm")
        v = b.linear(f"{at}.v", h, f"{source}.self_attn.v_proj", spec.kv_size)
        x = b.attend(i, q, k, v, x)
        h = b.norm(f"{at}.mlp_norm", x, f"{source}.post_attention_layernorm")
        x = mlp(b, i, h, x)
    return b.finish(x)
