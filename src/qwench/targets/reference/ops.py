"""What each op kind means: fp32 NumPy, a few lines an op. Every other target is tested against these.

Activations are [rows, width] fp32. Weights are `Matrix` (dense or quantised) or fp32 vectors. The step's state
(positions, cache) comes in a `StepState`. Fused kinds are written as the composition of their parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qwench.checkpoint.experts import ExpertsSpec
from qwench.checkpoint.spec import ModelSpec
from qwench.formats import Format, quantize_activation, round_to_bf16
from qwench.targets.reference.cache import Cache, rotate

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Lora:
    """What an adapter adds to a product, (x A.T * scales) B.T. a: [ranks, K], b: [N, ranks], scales: [ranks]."""

    a: Float32
    b: Float32
    scales: Float32


@dataclass(frozen=True)
class Matrix:
    """A weight [N, K]: dense fp32 `values`, or int8 codes in `values` with `scales` and perhaps `offsets` [N, groups],
    multiplied with `activations` (ACTIVATION_KINDS)."""

    format: Format
    values: npt.NDArray[Any]
    scales: Float32 | None = None
    offsets: Float32 | None = None
    activations: str = "int8"
    adapters: dict[int, Lora] = field(default_factory=dict)  # by number

    def rows(self, index: npt.NDArray[Any], width: int) -> Float32:
        """Dequantised rows [len(index), width]."""
        if self.scales is None:
            dense: Float32 = self.values[index, :width].astype(np.float32)
            return dense
        groups = self.values[index].reshape(len(index), self.scales.shape[1], -1) * np.float64(1)
        groups *= self.scales[index][..., None]
        if self.offsets is not None:
            groups += self.offsets[index][..., None]
        result: Float32 = groups.astype(np.float32).reshape(len(index), -1)[:, :width]  # rounded once
        return result


@dataclass
class StepState:
    """What ops need beside their inputs. slots: per layer [num_tokens] cache rows; caches: one a layer."""

    spec: ModelSpec
    token_ids: npt.NDArray[np.int32]
    embeddings: Float32
    positions: npt.NDArray[np.int64]
    slots: list[npt.NDArray[np.int64]]
    context: list[list[tuple[slice, npt.NDArray[np.int64]]]]  # per layer and sequence: token rows, slots by position
    rows: dict[str, npt.NDArray[np.int32]]  # whose logits and whose hidden states were asked for
    cos_sin: Float32  # [num_tokens, head_dim]
    caches: Sequence[Cache]
    rounds_queries: bool = False
    adapters: npt.NDArray[np.int32] | None = None  # number of each row of the op that runs, -1 for none


def embed(s: StepState, attrs: dict[str, Any], weight: Matrix) -> Float32:
    x, given = weight.rows(np.maximum(s.token_ids, 0), s.spec.hidden_size), s.token_ids < 0
    x[given] = s.embeddings[~s.token_ids[given]]
    return x


def rms_norm(s: StepState, attrs: dict[str, Any], x: Float32, gain: Float32, order: Float32 | None = None) -> Float32:
    variance = np.mean(x * x, axis=1, keepdims=True, dtype=np.float32)
    return _ordered(x * np.reciprocal(np.sqrt(variance + np.float32(attrs["eps"]))) * gain, order)


def _ordered(x: Float32, order: Float32 | None) -> Float32:
    return x if order is None else x[:, order.astype(np.int64)]


def linear(s: StepState, attrs: dict[str, Any], x: Float32, weight: Matrix, bias: Float32 | None = None) -> Float32:
    if weight.scales is None:
        y: Float32 = x @ weight.values.T
    elif weight.activations == "fp32":
        y = x @ weight.rows(np.arange(len(weight.values)), x.shape[1]).T
    else:
        y = _quantized_linear(x, weight)
    y = _with_adapters(s, x, weight, y)
    return y if bias is None else y + bias


def _with_adapters(s: StepState, x: Float32, weight: Matrix, y: Float32) -> Float32:
    """Adapters see the activations that the weights see, rounded or not."""
    if s.adapters is None or not weight.adapters:
        return y
    if weight.scales is not None and weight.activations != "fp32":
        codes, scales = quantize_activation(x, weight.format.group_size, weight.activations)
        x = (codes.reshape(*scales.shape, -1) * scales[..., None]).reshape(len(x), -1)[:, : x.shape[1]]
    for number, lora in weight.adapters.items():
        rows = s.adapters == number
        y[rows] += (x[rows] @ lora.a.T * lora.scales) @ lora.b.T
    return y


def _quantized_linear(x: Float32, weight: Matrix) -> Float32:
    """sum over groups of (codes . codes) * scale * scale; the integer sums are exact: below 2^24 in fp32, of int16
    below 2^30 in fp64."""
    assert weight.scales is not None
    group = weight.format.group_size
    exact: Any = np.float64 if weight.activations == "int16" else np.float32
    codes, scales = quantize_activation(x, group, weight.activations)
    y = np.zeros((len(x), len(weight.values)), np.float32)
    for g in range(scales.shape[1]):
        span = slice(g * group, (g + 1) * group)
        dot = codes[:, span].astype(exact) @ weight.values[:, span].astype(exact).T
        y += dot.astype(np.float32) * scales[:, g : g + 1] * weight.scales[:, g]
        if weight.offsets is not None:
            y += codes[:, span].sum(axis=1, dtype=np.float32)[:, None] * scales[:, g : g + 1] * weight.offsets[:, g]
    return y


def head_norm(s: StepState, attrs: dict[str, Any], x: Float32, gain: Float32) -> Float32:
    return rms_norm(s, attrs, x.reshape(-1, s.spec.head_dim), gain).reshape(x.shape)


def rope(s: StepState, attrs: dict[str, Any], x: Float32) -> Float32:
    return rotate(x.reshape(len(x), -1, s.spec.head_dim), s.cos_sin).reshape(x.shape)


def cache_write(s: StepState, attrs: dict[str, Any], k: Float32, v: Float32) -> None:
    layer, shape = attrs["layer"], (len(k), s.spec.num_kv_heads, s.spec.head_dim)
    s.caches[layer].write(s.slots[layer], s.positions, k.reshape(shape), v.reshape(shape))


def attention(s: StepState, attrs: dict[str, Any], q: Float32, order: Float32 | None = None) -> Float32:
    spec, layer, window = s.spec, attrs["layer"], attrs["window"]
    out = np.empty((len(q), spec.num_heads, spec.head_dim), np.float32)
    heads = q.reshape(out.shape)
    for rows, slots in s.context[layer]:
        first = max(0, int(s.positions[rows][0]) + 1 - (window or len(slots)))  # what lies before, nobody sees
        at = np.arange(first, len(slots))
        k, v = s.caches[layer].read(slots[first:], at)
        k, v = (np.repeat(c, spec.num_heads // spec.num_kv_heads, axis=1).transpose(1, 0, 2) for c in (k, v))
        queries = round_to_bf16(heads[rows]) if s.rounds_queries else heads[rows]
        scores = queries.transpose(1, 0, 2) @ k.transpose(0, 2, 1) * np.float32(attrs["scale"])
        distance = s.positions[rows][:, None] - at[None, :]
        visible = (distance >= 0) & (distance < (window or len(slots) + 1)) | (not attrs.get("causal", True))
        scores = np.where(visible, scores, np.float32(-np.inf))
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        total = weights.sum(axis=2, keepdims=True)
        weights = round_to_bf16(weights) if s.rounds_queries else weights
        out[rows] = (weights @ v / total).transpose(1, 0, 2)
    return _ordered(out.reshape(q.shape), order)


def silu_mul(s: StepState, attrs: dict[str, Any], gate: Float32, up: Float32) -> Float32:
    with np.errstate(over="ignore"):
        return gate * np.reciprocal(np.float32(1) + np.exp(-gate)) * up


def relu(s: StepState, attrs: dict[str, Any], x: Float32) -> Float32:
    return np.maximum(x, np.float32(0))


def route(s: StepState, attrs: dict[str, Any], x: Float32, *routers: Matrix) -> Float32:
    """routers: of the experts and of the shared one's gate, or both in one matrix. Of equal experts the first count."""
    scores = np.concatenate([linear(s, {}, x, router) for router in routers], axis=1)
    spec = _experts(s)
    of_experts, of_shared = np.split(scores, [spec.num_experts], axis=1)
    chosen = np.sort(np.argsort(-of_experts, axis=1, kind="stable")[:, : spec.top_k], axis=1)
    weights = np.exp(of_experts - of_experts.max(axis=1, keepdims=True))
    total = weights.sum(axis=1, keepdims=True)
    weights = np.take_along_axis(weights, chosen, axis=1)
    weights /= weights.sum(axis=1, keepdims=True) if spec.normalizes else total
    with np.errstate(over="ignore"):
        shared = np.reciprocal(np.float32(1) + np.exp(-of_shared))
    return np.concatenate([chosen.astype(np.float32), weights, shared], axis=1)


def _experts(s: StepState) -> ExpertsSpec:
    assert s.spec.experts is not None
    return s.spec.experts


def _routed_rows(s: StepState, routes: Float32) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Float32]:
    """Of the rows that tokens are dispatched to: each one's expert, token and weight."""
    top_k = _experts(s).top_k
    experts = routes[:, :top_k].astype(np.int64).reshape(-1)
    order = np.argsort(experts, kind="stable")
    return experts[order], order // top_k, routes[:, top_k : 2 * top_k].reshape(-1)[order]


def experts_of_rows(s: StepState, routes: Float32) -> npt.NDArray[np.int64]:
    """Of the rows that tokens are dispatched to, each one's expert."""
    return _routed_rows(s, routes)[0]


def dispatch(s: StepState, attrs: dict[str, Any], x: Float32, routes: Float32) -> Float32:
    return x[_routed_rows(s, routes)[1]]


def expert_linear(s: StepState, attrs: dict[str, Any], x: Float32, routes: Float32, *weights: Matrix) -> Float32:
    experts = experts_of_rows(s, routes)
    y = np.empty((len(x), len(weights[0].values)), np.float32)
    for expert in np.unique(experts):
        rows = experts == expert
        y[rows] = linear(s, {}, x[rows], weights[expert])
    return y


def combine(s: StepState, attrs: dict[str, Any], x: Float32, routes: Float32) -> Float32:
    return _add_routed(s, x, routes, np.zeros((len(routes), x.shape[1]), np.float32))


def _add_routed(s: StepState, x: Float32, routes: Float32, onto: Float32) -> Float32:
    _, tokens, weights = _routed_rows(s, routes)
    np.add.at(onto, tokens, weights[:, None] * x)
    return onto


def weigh_shared(s: StepState, attrs: dict[str, Any], x: Float32, routes: Float32) -> Float32:
    return x * routes[:, -1:]


def add(s: StepState, attrs: dict[str, Any], y: Float32, x: Float32) -> Float32:
    return y + x


def take_rows(s: StepState, attrs: dict[str, Any], x: Float32) -> Float32:
    return x[s.rows[attrs["rows"]]]


def qkv_rope_write(s: StepState, attrs: dict[str, Any], x: Float32, weight: Matrix, *vectors: Float32) -> Float32:
    """vectors: the bias, or the gains of q's norm and of k's."""
    qkv = linear(s, {}, x, weight, vectors[0] if len(vectors) == 1 else None)
    q, k, v = np.split(qkv, [s.spec.q_size, s.spec.q_size + s.spec.kv_size], axis=1)
    if len(vectors) == 2:
        q, k = (head_norm(s, attrs, part, gain) for part, gain in zip((q, k), vectors, strict=True))
    cache_write(s, attrs, rope(s, {}, k), v)
    return rope(s, {}, q)


def gate_up_silu(
    s: StepState, attrs: dict[str, Any], x: Float32, weight: Matrix, order: Float32 | None = None
) -> Float32:
    gate, up = np.split(linear(s, {}, x, weight), 2, axis=1)
    return silu_mul(s, {}, gate, up)


def linear_add(s: StepState, attrs: dict[str, Any], x: Float32, residual: Float32, weight: Matrix) -> Float32:
    return linear(s, {}, x, weight) + residual


def expert_gate_up_silu(s: StepState, attrs: dict[str, Any], x: Float32, routes: Float32, *weights: Matrix) -> Float32:
    gate, up = np.split(expert_linear(s, {}, x, routes, *weights), 2, axis=1)
    return silu_mul(s, {}, gate, up)


def expert_linear_add(s: StepState, attrs: dict[str, Any], x: Float32, routes: Float32, *others: Any) -> Float32:
    """others: the residual, if there is one, and the experts' matrices."""
    weights = [other for other in others if isinstance(other, Matrix)]
    y = expert_linear(s, {}, x, routes, *weights)
    nothing = np.zeros((len(routes), y.shape[1]), np.float32)
    return _add_routed(s, y, routes, nothing + others[0] if len(others) > len(weights) else nothing)


def shared_linear_add(s: StepState, attrs: dict[str, Any], x: Float32, routes: Float32, *others: Any) -> Float32:
    """others: the residual, if there is one, and the matrix."""
    y = weigh_shared(s, {}, linear(s, {}, x, others[-1]), routes)
    return y + others[0] if len(others) > 1 else y


OPS: dict[str, Callable[..., Float32 | None]] = {
    function.__name__: function
    for function in (
        embed, rms_norm, linear, head_norm, rope, cache_write, attention, silu_mul, add, relu,
        route, dispatch, expert_linear, combine, weigh_shared,
        take_rows, qkv_rope_write, gate_up_silu, linear_add,
        expert_gate_up_silu, expert_linear_add, shared_linear_add,
    )
}  # fmt: skip
