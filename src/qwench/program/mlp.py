"""What a layer has after its attention: an MLP, or experts in its place. Called by the pages that build models."""

from __future__ import annotations

from qwench.checkpoint.experts import ExpertsSpec
from qwench.program.builder import Builder


def mlp(b: Builder, layer: int, h: str, x: str) -> str:
    """x plus what the layer makes of h."""
    at, source, experts = f"layers.{layer}", f"model.layers.{layer}.mlp", b.spec.experts
    if experts is None or layer not in experts.layers:
        d = _gated_products(b, at, h, source, b.spec.intermediate_size)
    else:
        x, d = _experts(b, at, h, x, source, experts)
    return b.op("add", f"{at}.mlp_add", (d, x), b.spec.hidden_size)


def _gated_products(b: Builder, at: str, h: str, source: str, intermediate_size: int) -> str:
    """down(silu(gate(h)) * up(h))."""
    gate = b.linear(f"{at}.gate", h, f"{source}.gate_proj", intermediate_size)
    up = b.linear(f"{at}.up", h, f"{source}.up_proj", intermediate_size)
    m = b.op("silu_mul", f"{at}.silu_mul", (gate, up), intermediate_size)
    return b.linear(f"{at}.down", m, f"{source}.down_proj", b.spec.hidden_size)


def _experts(b: Builder, at: str, h: str, x: str, source: str, experts: ExpertsSpec) -> tuple[str, str]:
    """x plus what the shared expert makes of h, if there is one; and what the chosen ones do."""
    has_shared = experts.shared_intermediate_size > 0
    routers = [b.matrix(f"{source}.gate.weight", experts.num_experts, b.spec.hidden_size)]
    if has_shared:
        routers.append(b.matrix(f"{source}.shared_expert_gate.weight", 1, b.spec.hidden_size))
    routes = b.op("route", f"{at}.route", (h,), experts.routes_width, tuple(routers))
    if has_shared:
        d = _gated_products(b, f"{at}.shared", h, f"{source}.shared_expert", experts.shared_intermediate_size)
        d = b.op("weigh_shared", f"{at}.shared.weigh", (d, routes), b.spec.hidden_size)
        x = b.op("add", f"{at}.shared.add", (d, x), b.spec.hidden_size)
    return x, _chosen_experts(b, at, h, routes, source, experts)


def _chosen_experts(b: Builder, at: str, h: str, routes: str, source: str, experts: ExpertsSpec) -> str:
    """The sum of weight * down(silu(gate(h)) * up(h)) over each token's experts."""
    size, hidden = experts.intermediate_size, b.spec.hidden_size

    def product(name: str, x: str, projection: str, n: int) -> str:
        matrices = [
            b.matrix(f"{source}.experts.{expert}.{projection}.weight", n, b.width(x))
            for expert in range(experts.num_experts)
        ]
        return b.op("expert_linear", name, (x, routes), n, tuple(matrices), rows="routed")

    rows = b.op("dispatch", f"{at}.dispatch", (h, routes), hidden, rows="routed")
    gate, up = product(f"{at}.gate", rows, "gate_proj", size), product(f"{at}.up", rows, "up_proj", size)
    m = b.op("silu_mul", f"{at}.silu_mul", (gate, up), size, rows="routed")
    d = product(f"{at}.experts_down", m, "down_proj", hidden)
    return b.op("combine", f"{at}.down", (d, routes), hidden)
