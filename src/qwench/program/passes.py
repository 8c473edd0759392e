"""Passes: Program -> Program. Fusion of neighbours, then the formats of weights and of the activations they read.

Passes match on the graph, not on names, and every fused kind means exactly its parts (`targets/reference`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from qwench.errors import ConfigError
from qwench.formats import BF16, FLOAT_ACTIVATIONS, FP32, INTEGER_ACTIVATIONS, WEIGHT_KINDS, Format
from qwench.program.ops import EXPERT_PRODUCTS, PRODUCTS, Op, Program, Weight, matrices_of


def fuse(program: Program) -> Program:
    """All fusions: QKV with RoPE and cache write, gate with up and SiLU, routers, residual adds."""
    for fusion in (_fuse_qkv, _fuse_gate_up, _fuse_routers, _fuse_add):
        program = fusion(program)
    return _mark_order_keepers(program)


def _mark_order_keepers(program: Program) -> Program:
    """Experts read what others of their tokens' experts read, and with them routers and the shared one."""
    weights = dict(program.weights)
    for op in program.ops:
        if op.kind in EXPERT_PRODUCTS or len(program.consumers(op.inputs[0] if op.inputs else "")) > 1:
            for name in matrices_of(op):
                weights[name] = dataclasses.replace(weights[name], keeps_order=True)
    return dataclasses.replace(program, weights=weights)


def set_formats(program: Program, choose: Callable[[Weight], Format], activations: str) -> Program:
    """Gives each matrix the format that `choose` says, and the buffers that matrices are multiplied with `activations`,
    one of ACTIVATION_KINDS. Beside matrices that it isn't for, they become int8 (integer weights) or fp32 (bf16).
    Raises ConfigError for a format that isn't one of weights, and for readers that differ."""
    routers = {name for op in program.ops if op.kind == "route" for name in op.weights}
    weights = {
        name: weight
        if weight.is_vector
        else dataclasses.replace(weight, format=BF16 if name in routers else choose(weight))
        for name, weight in program.weights.items()
    }
    if wrong := [w for w in weights.values() if not w.is_vector and w.format.kind not in WEIGHT_KINDS]:
        raise ConfigError(f"{wrong[0].name} can't be {wrong[0].format}; weights are {', '.join(WEIGHT_KINDS)}")
    program = dataclasses.replace(program, weights=weights)
    read_as = {
        name: {op.name: _format_read(program, op, name, activations) for op in program.consumers(name)}
        for name in program.buffers
    }
    program = _norms_by_format(program, read_as)
    buffers = {}
    for name, buffer in program.buffers.items():
        formats = set(read_as[name].values())
        if len(formats) > 1:
            # One producer writes one format; q, k, v and gate, up share a weight after fusion, so this is a misuse.
            raise ConfigError(f"readers of {name} need different activation formats: {sorted(map(str, formats))}")
        buffers[name] = dataclasses.replace(buffer, format=formats.pop() if formats else FP32)
    return dataclasses.replace(program, buffers=buffers)


def _norms_by_format(program: Program, read_as: dict[str, dict[str, Format]]) -> Program:
    """A norm whose readers need several formats, as a router and its experts do, is computed once for each. Changes
    `read_as`: of each buffer, the formats by the readers' names."""
    ops, buffers = [], dict(program.buffers)
    renamed: dict[tuple[str, str], str] = {}  # the norm of which reader and buffer
    for op in program.ops:
        op = dataclasses.replace(op, inputs=tuple(renamed.get((op.name, name), name) for name in op.inputs))
        ops.append(op)
        formats = read_as.get(op.output, {})
        if op.kind != "rms_norm" or len(set(formats.values())) < 2:
            continue
        first, *others = dict.fromkeys(formats.values())
        read_as[op.output] = {reader: fmt for reader, fmt in formats.items() if fmt == first}
        for fmt in others:
            name = f"{op.output}.{fmt}"
            ops.append(dataclasses.replace(op, name=name, output=name))
            buffers[name] = dataclasses.replace(buffers[op.output], name=name)
            read_as[name] = {reader: f for reader, f in formats.items() if f == fmt}
            renamed |= {(reader, op.output): name for reader in read_as[name]}
    return dataclasses.replace(program, ops=tuple(ops), buffers=buffers)


def set_orders(program: Program, is_reordered: Callable[[Weight], bool]) -> Program:
    """Marks the matrices whose inputs come in an order of their own, and has these inputs written so: a norm and
    attention get the order as a weight; a product before it, too, and has its rows in that order already."""
    weights, ops = dict(program.weights), list(program.ops)
    producer = {op.output: i for i, op in enumerate(ops)}
    for op in program.ops:
        if op.kind not in PRODUCTS or not is_reordered(program.weights[op.weights[0]]):
            continue
        matrix, before = program.weights[op.weights[0]], ops[producer[op.inputs[0]]]
        weights[matrix.name] = dataclasses.replace(weights[matrix.name], reordered=True)
        if before.kind in PRODUCTS:
            rows = weights[before.weights[0]]
            weights[rows.name] = dataclasses.replace(rows, row_order=matrix.sources[0])
        order = Weight(f"{before.output}.order", (matrix.sources[0] + ORDER,), (matrix.shape[1],), FP32)
        weights[order.name] = order
        ops[producer[op.inputs[0]]] = dataclasses.replace(before, weights=(*before.weights, order.name))
    return dataclasses.replace(program, weights=weights, ops=tuple(ops))


ORDER = ".order"  # after the name of a matrix: the order of its inputs, as a source of a Weight


def ordered_matrix(source: str) -> str | None:
    """The matrix whose order of inputs a Weight's source is, or None if it is a tensor of a checkpoint."""
    return source.removesuffix(ORDER) if source.endswith(ORDER) else None


def _format_read(program: Program, op: Op, buffer: str, activations: str) -> Format:
    """The format in which `op` reads `buffer`: that of its matmul for the matmul's input, fp32 for all else."""
    if buffer != op.inputs[0]:
        return FP32
    if op.kind == "dispatch":  # which copies rows as their readers take them
        return _format_read(program, program.consumers(op.output)[0], op.output, activations)
    formats = {_activation_format(program.weights[name], activations) for name in matrices_of(op)} or {FP32}
    if len(formats) > 1:
        told = " and ".join(sorted(map(str, formats)))
        raise ConfigError(f"the experts of {op.name} would be multiplied by {told}; give all of them one format")
    return formats.pop()


def _activation_format(weight: Weight, activations: str) -> Format:
    """What a matrix is multiplied with."""
    group_size = weight.format.group_size
    if group_size and activations != "fp32":
        return Format(activations if activations in INTEGER_ACTIVATIONS else "int8", group_size)  # type: ignore[arg-type]
    return Format(activations if activations in FLOAT_ACTIVATIONS else "fp32")  # type: ignore[arg-type]


def _rewrite(program: Program, replaced: dict[str, Op | None], weights: dict[str, Weight]) -> Program:
    """Ops in `replaced` (by name) give way to their replacement or to nothing; unused buffers and weights go."""
    ops: list[Op] = []
    for op in program.ops:
        new = replaced.get(op.name, op)
        if new is not None:
            ops.append(new)
    used = {w for op in ops for w in op.weights}
    outputs = {op.output for op in ops}
    return Program(
        program.spec,
        {n: b for n, b in program.buffers.items() if n in outputs},
        {n: w for n, w in weights.items() if n in used},
        tuple(ops),
    )


def _stack(name: str, parts: list[Weight]) -> Weight:
    rows = sum(p.shape[0] for p in parts)
    sources = tuple(s for p in parts for s in p.sources)
    return Weight(name, sources, (rows, *parts[0].shape[1:]), parts[0].format)


def _fuse_qkv(program: Program) -> Program:
    producer = {op.output: op for op in program.ops if op.output}
    replaced: dict[str, Op | None] = {}
    weights = dict(program.weights)
    for write in [op for op in program.ops if op.kind == "cache_write"]:
        attention = next(
            op for op in program.ops if op.kind == "attention" and op.attrs["layer"] == write.attrs["layer"]
        )
        q_rope, k_rope = producer[attention.inputs[0]], producer[write.inputs[0]]
        parts = [producer[name] for name in (q_rope.inputs[0], k_rope.inputs[0], write.inputs[1])]
        norms = [part for part in parts if part.kind == "head_norm"]
        parts = [producer[part.inputs[0]] if part in norms else part for part in parts]
        at, attrs = write.name.rpartition(".")[0], dict(write.attrs)
        matrix = _stack(f"{at}.qkv.weight", [weights[p.weights[0]] for p in parts])
        weights[matrix.name] = matrix
        if norms:
            vectors = tuple(norm.weights[0] for norm in norms)
            attrs["eps"] = norms[0].attrs["eps"]
        else:
            bias = _stack(f"{at}.qkv.bias", [weights[p.weights[1]] for p in parts])
            weights[bias.name] = bias
            vectors = (bias.name,)
        replaced |= dict.fromkeys([p.name for p in (*parts, *norms, k_rope, write)])
        # The op keeps the name of the rotated q, which attention reads.
        replaced[q_rope.name] = Op(
            "qkv_rope_write", q_rope.name, parts[0].inputs, q_rope.output, (matrix.name, *vectors), attrs
        )
    return _rewrite(program, replaced, weights)


def _fuse_gate_up(program: Program) -> Program:
    producer = {op.output: op for op in program.ops if op.output}
    replaced: dict[str, Op | None] = {}
    weights = dict(program.weights)
    for silu in [op for op in program.ops if op.kind == "silu_mul"]:
        gate, up = (producer[name] for name in silu.inputs)
        at, matrices = silu.name.rpartition(".")[0], []
        of_experts = gate.kind == "expert_linear"
        for i, parts in enumerate(zip(gate.weights, up.weights, strict=True)):
            name = f"{at}.experts.{i}.gate_up.weight" if of_experts else f"{at}.gate_up.weight"
            weights[name] = dataclasses.replace(_stack(name, [weights[part] for part in parts]), paired=True)
            matrices.append(name)
        kind = "expert_gate_up_silu" if of_experts else "gate_up_silu"
        replaced |= {gate.name: None, up.name: None}
        replaced[silu.name] = Op(kind, silu.name, gate.inputs, silu.output, tuple(matrices))
    return _rewrite(program, replaced, weights)


def _fuse_routers(program: Program) -> Program:
    """The shared expert's gate becomes a row of the router."""
    replaced: dict[str, Op | None] = {}
    weights = dict(program.weights)
    for op in [op for op in program.ops if op.kind == "route" and len(op.weights) > 1]:
        matrix = _stack(f"{op.name}.weight", [weights[name] for name in op.weights])
        weights[matrix.name] = matrix
        replaced[op.name] = dataclasses.replace(op, weights=(matrix.name,))
    return _rewrite(program, replaced, weights)


# What becomes of a product, and what it goes through, whose result is added to the residual.
_ADDED = {("linear",): "linear_add", ("linear", "weigh_shared"): "shared_linear_add",
          ("expert_linear", "combine"): "expert_linear_add"}  # fmt: skip


def _fuse_add(program: Program) -> Program:
    producer = {op.output: op for op in program.ops if op.output}
    replaced: dict[str, Op | None] = {}
    for add in [op for op in program.ops if op.kind == "add"]:
        chain = [producer[add.inputs[0]]]
        while chain[0].kind in ("weigh_shared", "combine"):
            chain.insert(0, producer[chain[0].inputs[0]])
        product, kind = chain[0], _ADDED.get(tuple(op.kind for op in chain))
        has_bias = kind != "expert_linear_add" and len(product.weights) != 1
        if kind is None or has_bias or any(len(program.consumers(op.output)) != 1 for op in chain):
            continue
        routes = chain[-1].inputs[1:]
        inputs = (product.inputs[0], *routes, add.inputs[1])
        replaced |= {op.name: None for op in chain}
        replaced[add.name] = Op(kind, add.name, inputs, add.output, product.weights)
    return _rewrite(program, replaced, program.weights)
