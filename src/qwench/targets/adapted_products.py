"""Which pairs of a LoRA adapter change which product of a Program; the same for every target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from qwench.checkpoint.spec import HEAD
from qwench.errors import TargetError
from qwench.lora.adapter import LoraAdapter, LoraPair
from qwench.program.models import adaptable_shapes
from qwench.program.ops import PRODUCTS, Op, Program, Weight
from qwench.targets.target import Array, Int32


@dataclass(frozen=True)
class AdaptedProduct:
    """A product whose matrix is made of several sources. heights: rows of each; pairs: what changes each, or None.

    order: [K], of a matrix whose inputs come in an order of their own, or None. row_order: [rows of a source], of one
    whose outputs are written in such an order.
    """

    op: Op
    weight: Weight
    heights: list[int]
    pairs: list[LoraPair | None]
    order: Int32 | None
    row_order: Int32 | None


def adapted_products(program: Program, adapter: LoraAdapter, tensors: Mapping[str, Array]) -> Iterator[AdaptedProduct]:
    """In the order of the Program. Raises TargetError when the adapter changes what isn't one."""
    shapes, left = adaptable_shapes(program.spec), set(adapter.pairs)
    for op in program.ops:
        if op.kind not in PRODUCTS:
            continue
        weight = program.weights[op.weights[0]]
        sources = _sources(program, op)
        pairs = [adapter.pairs.get(source) for source in sources]
        if any(pair is not None for pair in pairs):
            left -= set(sources)
            heights = [shapes[source][0] for source in sources]
            order = _order(op.inputs[0], weight.shape[1], tensors) if weight.reordered else None
            row_order = _order(op.output, heights[0], tensors) if weight.row_order else None
            yield AdaptedProduct(op, weight, heights, pairs, order, row_order)
    if left:
        why = "an expert's, whose rows are others'" if ".experts." in min(left) else "which isn't multiplied"
        raise TargetError(f"the adapter changes {min(left)}, {why}; merge it (compile --lora)")


def _sources(program: Program, op: Op) -> tuple[str, ...]:
    is_head = op.output == program.logits and program.spec.head.kind == "causal_lm"
    return (HEAD,) if is_head else program.weights[op.weights[0]].sources


def _order(buffer: str, width: int, tensors: Mapping[str, Array]) -> Int32:
    """In which the values of a buffer are written. See set_orders in passes.py."""
    return tensors[f"{buffer}.order"].view(np.float32)[:width].astype(np.int32)
