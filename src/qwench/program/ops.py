"""The op set and the Program: the ordered ops of one model, the buffers between them, and the weights they read.

A Program is data: JSON that can be read, compared and stored, the same for every target. It knows nothing of how a
target lays out weights or computes an op; `targets/reference/ops.py` says what each kind means.

Kinds as the builder writes them:
    embed          token ids -> rows of the embedding matrix, or of the embeddings that the caller gives
    rms_norm       x / rms(x) * gain, in the order of inputs that its second weight gives, if it has one
    linear         x @ weight.T + bias
    head_norm      rms_norm of each head by itself
    rope           rotary position embedding of each head
    cache_write    keys and values of this step into the paged cache
    attention      attention of q over the cache, within `window` if given, to all of a sequence if attrs["causal"] is
                   false; ordered likewise by its weight
    silu_mul       silu(gate) * up
    add            elementwise sum
    relu           the larger of x and 0
    route          the experts that each token chooses, in order, their weights, and the shared expert's: softmax and
                   sigmoid of products with the router and the shared expert's gate
    dispatch       the row of a token for each of its experts; rows of one expert next to each other, experts and tokens
                   in order
    expert_linear  x @ weight.T, with the matrix of each row's expert
    combine        the sum of each token's rows, times their weights, in the order of experts
    weigh_shared   rows times the shared expert's weight
    take_rows      the rows whose logits, or whose hidden states, were asked for: attrs["rows"]
Kinds that `passes.py` makes of them:
    qkv_rope_write three linears, with bias or with norms of q's and k's heads after them, RoPE of q and k, cache
                   write; gives the rotated q
    gate_up_silu   two linears and their silu_mul, in the order that its second weight tells, if it has one
    linear_add     a linear and the residual add
    expert_gate_up_silu  two expert_linears and their silu_mul
    expert_linear_add    an expert_linear, combine and the residual add
    shared_linear_add    a linear, weigh_shared and the residual add
What is added to may be missing from the last two: then it is nothing.
Kinds that `local.py` makes of a rank's:
    gather         columns of all ranks side by side, in the order of inputs that its weight gives, if it has one
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

from qwench.checkpoint.spec import ModelSpec
from qwench.formats import BF16, FP32, Format

OP_KINDS = (
    "embed", "rms_norm", "linear", "head_norm", "rope", "cache_write", "attention", "silu_mul", "add", "relu",
    "route", "dispatch", "expert_linear", "combine", "weigh_shared",
    "take_rows", "qkv_rope_write", "gate_up_silu", "linear_add",
    "expert_gate_up_silu", "expert_linear_add", "shared_linear_add", "gather",
)  # fmt: skip
# Of inputs[0] with the matrix weights[0].
PRODUCTS = ("linear", "linear_add", "qkv_rope_write", "gate_up_silu", "shared_linear_add")
# Of inputs[0] with the matrices of experts, weights; inputs[1] says whose the rows are.
EXPERT_PRODUCTS = ("expert_linear", "expert_gate_up_silu", "expert_linear_add")


Rows: TypeAlias = Literal["tokens", "logits", "hidden", "routed"]


@dataclass(frozen=True)
class Weight:
    """A matrix [N, K] or a vector [N], made of checkpoint tensors stacked along N in the order of `sources`.

    `paired` tells targets that row i of the first source is always used together with row i of the second.
    reordered: its columns are in an order of their own, and what is multiplied with it is written in that order.
    row_order: the matrix whose order of inputs its rows are in, within each source, or "".
    keeps_order: its columns can't be in an order of their own, since others read what it is multiplied with.
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    format: Format = BF16
    paired: bool = False
    reordered: bool = False
    row_order: str = ""
    keeps_order: bool = False

    @property
    def is_vector(self) -> bool:
        return len(self.shape) == 1


@dataclass(frozen=True)
class Buffer:
    """An activation [rows, width]: `rows` is "tokens" (all of a step), "logits" (the rows whose logits were asked for),
    "hidden" (the rows whose hidden states were) or "routed" (one for each token and expert that it chose).

    `format` is fp32 or, where its readers are matmuls, bf16, int8 or int16 with a group size: what they multiply.
    """

    name: str
    width: int
    rows: Rows = "tokens"
    format: Format = FP32


@dataclass(frozen=True)
class Op:
    """One step: reads buffers `inputs`, writes buffer `output` ("" for a cache write), with named weights."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    weights: tuple[str, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)


def matrices_of(op: Op) -> tuple[str, ...]:
    """The weights that a product multiplies inputs[0] with, one or an expert's each; none of other ops."""
    if op.kind in EXPERT_PRODUCTS:
        return op.weights
    return op.weights[:1] if op.kind in PRODUCTS else ()


def residual_of(op: Op) -> str | None:
    """The buffer that an op adds its result to; None if it does no such thing."""
    if op.kind in ("add", "linear_add"):
        return op.inputs[1]
    return op.inputs[2] if op.kind in ("shared_linear_add", "expert_linear_add") and len(op.inputs) > 2 else None


@dataclass(frozen=True)
class Program:
    """Ops in execution order. Tokens and embeddings come from outside, results go there.

    Results are the buffers that no op reads: the hidden states, in order, and the logits, the head's output.
    """

    spec: ModelSpec
    buffers: dict[str, Buffer]
    weights: dict[str, Weight]
    ops: tuple[Op, ...]

    def consumers(self, buffer: str) -> list[Op]:
        """The ops that read `buffer`, in order."""
        return self._readers.get(buffer, [])

    @cached_property
    def hidden_states(self) -> tuple[str, ...]:
        """The residual stream before each layer, and after the last one's final norm: num_layers + 1 results."""
        return tuple(name for name in self.results if self.buffers[name].rows == "hidden")

    @cached_property
    def logits(self) -> str | None:
        """The output of the head; None without one."""
        return next((name for name in self.results if self.buffers[name].rows == "logits"), None)

    @cached_property
    def results(self) -> tuple[str, ...]:
        """The buffers that no op reads, in the order in which they are written."""
        return tuple(op.output for op in self.ops if op.output and not self.consumers(op.output))

    @cached_property
    def _readers(self) -> dict[str, list[Op]]:
        """Found once: passes ask for each buffer, and opening an artifact runs the passes."""
        readers: dict[str, list[Op]] = {}
        for op in self.ops:
            for name in dict.fromkeys(op.inputs):
                readers.setdefault(name, []).append(op)
        return readers

    def to_dict(self) -> dict[str, Any]:
        def plain(item: Weight | Buffer | Op) -> dict[str, Any]:
            data = dataclasses.asdict(item)
            if "format" in data:
                data["format"] = str(item.format)  # type: ignore[union-attr]
            return data

        return {
            "spec": self.spec.to_dict(),
            "buffers": [plain(b) for b in self.buffers.values()],
            "weights": [plain(w) for w in self.weights.values()],
            "ops": [plain(op) for op in self.ops],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Program:
        """Inverse of `to_dict`. Raises KeyError or TypeError when the data isn't a Program."""
        buffers = [Buffer(**{**b, "format": Format.parse(b["format"])}) for b in data["buffers"]]
        weights = [
            Weight(
                **{**w, "sources": tuple(w["sources"]), "shape": tuple(w["shape"]), "format": Format.parse(w["format"])}
            )
            for w in data["weights"]
        ]
        ops = [
            Op(o["kind"], o["name"], tuple(o["inputs"]), o["output"], tuple(o["weights"]), dict(o["attrs"]))
            for o in data["ops"]
        ]
        return cls(
            ModelSpec.from_dict(data["spec"]), {b.name: b for b in buffers}, {w.name: w for w in weights}, tuple(ops)
        )
