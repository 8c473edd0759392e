"""Builder: collects the ops of a model, and knows the parts that all models here share.

Each method adds an op, or a part of a layer, and returns the name of its output. What tells one model from another is
in its own page beside this one. Called by those pages.
"""

from __future__ import annotations

from typing import Any

from qwench.checkpoint.spec import ModelSpec
from qwench.formats import FP32
from qwench.program.ops import Buffer, Op, Program, Rows, Weight


class Builder:
    """Sources are names of checkpoint tensors, or of modules where there is a weight and perhaps a bias."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.buffers: dict[str, Buffer] = {}
        self.weights: dict[str, Weight] = {}
        self.ops: list[Op] = []

    def op(self, kind: str, name: str, inputs: tuple[str, ...], width: int, weights: tuple[str, ...] = (),
           rows: Rows = "tokens", **attrs: Any) -> str:  # fmt: skip
        if width:
            self.buffers[name] = Buffer(name, width, rows)
        self.ops.append(Op(kind, name, inputs, name if width else "", weights, attrs))
        return name

    def matrix(self, source: str, n: int, k: int) -> str:
        self.weights[source] = Weight(source, (source,), (n, k))
        return source

    def vector(self, source: str, n: int) -> str:
        self.weights[source] = Weight(source, (source,), (n,), FP32)
        return source

    def width(self, name: str) -> int:
        return self.buffers[name].width

    def take_rows(self, name: str, x: str, rows: Rows) -> str:
        self.buffers[name] = Buffer(name, self.width(x), rows)
        self.ops.append(Op("take_rows", name, (x,), name, (), {"rows": rows}))
        return name

    def norm(self, name: str, x: str, source: str, **rows: Any) -> str:
        gain = self.vector(f"{source}.weight", self.width(x))
        return self.op("rms_norm", name, (x,), self.width(x), (gain,), eps=self.spec.rms_norm_eps, **rows)

    def head_norm(self, name: str, x: str, source: str) -> str:
        gain = self.vector(f"{source}.weight", self.spec.head_dim)
        return self.op("head_norm", name, (x,), self.width(x), (gain,), eps=self.spec.rms_norm_eps)

    def linear(self, name: str, x: str, source: str, n: int, bias: bool = False, **rows: Any) -> str:
        matrix = self.matrix(f"{source}.weight", n, self.width(x))
        return self.op("linear", name, (x,), n, (matrix, *([self.vector(f"{source}.bias", n)] if bias else [])), **rows)

    def embed(self) -> str:
        table = self.matrix("model.embed_tokens.weight", self.spec.vocab_size, self.spec.hidden_size)
        return self.op("embed", "embed", (), self.spec.hidden_size, (table,))

    def attend(self, layer: int, q: str, k: str, v: str, x: str) -> str:
        """x plus the attention of the layer's queries over the cache, its keys and values among it."""
        spec, at = self.spec, f"layers.{layer}"
        q = self.op("rope", f"{at}.q_rope", (q,), spec.q_size)
        k = self.op("rope", f"{at}.k_rope", (k,), spec.kv_size)
        self.op("cache_write", f"{at}.cache_write", (k, v), 0, layer=layer)
        window, scale = spec.sliding_windows[layer], spec.head_dim**-0.5
        sees: dict[str, Any] = {} if spec.is_causal else {"causal": False}
        a = self.op("attention", f"{at}.attention", (q,), spec.q_size, layer=layer, window=window, scale=scale, **sees)
        o = self.linear(f"{at}.o", a, f"model.{at}.self_attn.o_proj", spec.hidden_size)
        return self.op("add", f"{at}.attn_add", (o, x), spec.hidden_size)

    def finish(self, x: str) -> Program:
        """The Program that ends with the final norm and, of the rows whose logits are asked for, the head."""
        spec, head = self.spec, self.spec.head
        h = self.take_rows("hidden_rows", x, "hidden")
        self.norm("final_hidden", h, "model.norm", rows="hidden")
        if head.kind != "none":
            x = self.take_rows("take_rows", x, "logits")
            h = self.norm("final_norm", x, "model.norm", rows="logits")
        if head.kind == "causal_lm":
            source = "model.embed_tokens" if spec.tie_word_embeddings else "lm_head"
            self.linear("lm_head", h, source, spec.vocab_size, rows="logits")
        elif head.is_classifier:
            if head.is_deep:
                h = self.linear("score_hidden", h, "score.0", spec.hidden_size, bias=True, rows="logits")
                h = self.op("relu", "score_relu", (h,), spec.hidden_size, rows="logits")
            source = "score.2" if head.is_deep else "score"
            self.linear("score", h, source, head.num_labels, bias=head.has_bias, rows="logits")
        return Program(spec, self.buffers, self.weights, tuple(self.ops))
