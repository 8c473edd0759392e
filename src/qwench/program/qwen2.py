"""ModelSpec -> Program: the whole of Qwen2 on one page, unfused, in the order of the paper's picture. Its mixtures of
experts, Qwen1.5 and Qwen2 MoE, differ in what `mlp` adds."""

from __future__ import annotations

from qwench.checkpoint.spec import ModelSpec
from qwench.program.builder import Builder
from qwench.program.mlp import mlp
from qwench.program.ops import Program


def build_qwen2(spec: ModelSpec) -> Program:
    """The forward pass of a Qwen2 decoder for one step: tokens in, logits and hidden states of the asked rows out."""
    b = Builder(spec)
    x = b.embed()
    for i in range(spec.num_layers):
        at, source = f"layers.{i}", f"model.layers.{i}"
        b.take_rows(f"{at}.hidden", x, "hidden")
        h = b.norm(f"{at}.attn_norm", x, f"{source}.input_layernorm")
        q = b.linear(f"{at}.q", h, f"{source}.self_attn.q_proj", spec.q_size, bias=True)
        k = b.linear(f"{at}.k", h, f"{source}.self_attn.k_proj", spec.kv_size, bias=True)
        v = b.linear(f"{at}.v", h, f"{source}.self_attn.v_proj", spec.kv_size, bias=True)
        x = b.attend(i, q, k, v, x)
        h = b.norm(f"{at}.mlp_norm", x, f"{source}.post_attention_layernorm")
        x = mlp(b, i, h, x)
    return b.finish(x)
