"""ModelSpec -> Program: the whole of Qwen2 on one page, unfused, in the order of the paper's picture."""

from __future__ import annotations

from typing import Any

from qwench.checkpoint.spec import EMBEDDING, HEAD, ModelSpec
from qwench.formats import FP32
from qwench.program.ops import Buffer, Op, Program, Rows, Weight


class _Builder:
    """Collects buffers, weights and ops; each method adds one op and returns the name of its output."""

    def __init__(self) -> None:
        self.buffers: dict[str, Buffer] = {}
        self.weights: dict[str, Weight] = {}
        self.ops: list[Op] = []

    def op(self, kind: str, name: str, inputs: tuple[str, ...], width: int, weights: tuple[str, ...] = (),
           rows: Rows = "tokens", **attrs: Any) -> str:  # fmt: skip
        if width:
            self.buffers[name] = Buffer(name, width, rows)
        self.ops.append(Op(kind, name, inputs, name if width else "", weights, attrs))
        return name

    def take_rows(self, name: str, x: str, width: int, rows: Rows) -> str:
        self.buffers[name] = Buffer(name, width, rows)
        self.ops.append(Op("take_rows", name, (x,), name, (), {"rows": rows}))
        return name

    def matrix(self, source: str, n: int, k: int) -> str:
        self.weights[source] = Weight(source, (source,), (n, k))
        return source

    def vector(self, source: str, n: int) -> str:
        self.weights[source] = Weight(source, (source,), (n,), FP32)
        return source

    def norm(self, name: str, x: str, source: str, width: int, eps: float, **rows: Any) -> str:
        return self.op("rms_norm", name, (x,), width, (self.vector(f"{source}.weight", width),), eps=eps, **rows)

    def linear(self, name: str, x: str, source: str, n: int, k: int, bias: bool = False, **rows: Any) -> str:
        weights = (self.matrix(f"{source}.weight", n, k), *([self.vector(f"{source}.bias", n)] if bias else []))
        return self.op("linear", name, (x,), n, weights, **rows)


def build_qwen2(spec: ModelSpec) -> Program:
    """The forward pass of a Qwen2 decoder for one step: tokens in, logits and hidden states of the asked rows out."""
    b, hidden, inter = _Builder(), spec.hidden_size, spec.intermediate_size
    embedding = b.matrix(EMBEDDING, spec.vocab_size, hidden)
    x = b.op("embed", "embed", (), hidden, (embedding,))
    for i, window in enumerate(spec.sliding_windows):
        at, src = f"layers.{i}", f"model.layers.{i}"
        b.take_rows(f"{at}.hidden", x, hidden, "hidden")
        h = b.norm(f"{at}.attn_norm", x, f"{src}.input_layernorm", hidden, spec.rms_norm_eps)
        q = b.linear(f"{at}.q", h, f"{src}.self_attn.q_proj", spec.q_size, hidden, bias=True)
        k = b.linear(f"{at}.k", h, f"{src}.self_attn.k_proj", spec.kv_size, hidden, bias=True)
        v = b.linear(f"{at}.v", h, f"{src}.self_attn.v_proj", spec.kv_size, hidden, bias=True)
        q = b.op("rope", f"{at}.q_rope", (q,), spec.q_size)
        k = b.op("rope", f"{at}.k_rope", (k,), spec.kv_size)
        b.op("cache_write", f"{at}.cache_write", (k, v), 0, layer=i)
        a = b.op("attention", f"{at}.attention", (q,), spec.q_size, layer=i, window=window, scale=spec.head_dim**-0.5)
        o = b.linear(f"{at}.o", a, f"{src}.self_attn.o_proj", hidden, spec.q_size)
        x = b.op("add", f"{at}.attn_add", (o, x), hidden)
        h = b.norm(f"{at}.mlp_norm", x, f"{src}.post_attention_layernorm", hidden, spec.rms_norm_eps)
        gate = b.linear(f"{at}.gate", h, f"{src}.mlp.gate_proj", inter, hidden)
        up = b.linear(f"{at}.up", h, f"{src}.mlp.up_proj", inter, hidden)
        m = b.op("silu_mul", f"{at}.silu_mul", (gate, up), inter)
        d = b.linear(f"{at}.down", m, f"{src}.mlp.down_proj", hidden, inter)
        x = b.op("add", f"{at}.mlp_add", (d, x), hidden)
    h = b.take_rows("hidden_rows", x, hidden, "hidden")
    b.norm("final_hidden", h, "model.norm", hidden, spec.rms_norm_eps, rows="hidden")
    x = b.take_rows("take_rows", x, hidden, "logits")
    h = b.norm("final_norm", x, "model.norm", hidden, spec.rms_norm_eps, rows="logits")
    head = embedding if spec.tie_word_embeddings else b.matrix(HEAD, spec.vocab_size, hidden)
    b.op("linear", "lm_head", (h,), spec.vocab_size, (head,), rows="logits")
    return Program(spec, b.buffers, b.weights, tuple(b.ops))


def source_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Checkpoint tensor -> shape, for every tensor that the model reads. Before fusion each weight is one tensor."""
    return {weight.name: weight.shape for weight in build_qwen2(spec).weights.values()}


def adaptable_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Matrix -> shape, by the names that adapters give them: a head has its own where it is the embedding's, too."""
    shapes = {name: shape for name, shape in source_shapes(spec).items() if len(shape) == 2}
    return {**shapes, HEAD: (spec.vocab_size, spec.hidden_size)}
