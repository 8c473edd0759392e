"""How ranks share a Program: every product is split along its outputs, attention along its heads, sums never.

An output is computed by one rank, in the order in which one process computes it, so that bits don't depend on the
number of ranks. Panels of 64 packed columns are the unit, and of outputs that are quantised in groups as many as a
group has.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from qwench.checkpoint.spec import ModelSpec
from qwench.errors import ConfigError
from qwench.program.ops import PRODUCTS, Op, Program

PANEL = 64


@dataclass(frozen=True)
class Shares:
    """How much of the work each rank takes, in parts of their sum; equal ones by default."""

    parts: tuple[int, ...]

    @classmethod
    def parse(cls, size: int, text: str | None, spec: ModelSpec) -> Shares:
        """size: number of ranks. text: as "2,1,1", or None. Raises ConfigError for what this model can't be split
        into."""
        try:
            parts = (1,) * size if text is None else tuple(map(int, text.split(",")))
        except ValueError:
            parts = ()
        if len(parts) != size or any(part < 1 for part in parts):
            raise ConfigError(f"shares is {text!r}; it must be {size} numbers from 1 on, as 2,1,1 for three ranks")
        shares = cls(parts)
        heads = [shares.range(spec.num_heads, rank) for rank in range(size)]
        if any(first == last for first, last in heads):
            raise ConfigError(
                f"the model has {spec.num_heads} heads, too few for {size} ranks with shares of "
                f"{','.join(map(str, parts))}; take fewer ranks, or more equal shares"
            )
        return shares

    def range(self, count: int, rank: int) -> tuple[int, int]:
        """Which of `count` units a rank has: [first, last)."""
        whole = sum(self.parts)
        before = sum(self.parts[:rank])
        return round(count * before / whole), round(count * (before + self.parts[rank]) / whole)


def shard(program: Program, shares: Shares, rank: int) -> Program:
    """The Program of one rank: the same ops, products with attrs["panels"], those of attention with attrs["heads"]."""
    heads = shares.range(program.spec.num_heads, rank)

    def of_rank(op: Op) -> Op:
        if op.kind in ("attention", "qkv_rope_write"):
            return dataclasses.replace(op, attrs={**op.attrs, "heads": heads})
        if op.kind in PRODUCTS:
            return dataclasses.replace(op, attrs={**op.attrs, "panels": _panels(program, op, shares, rank)})
        return op

    return dataclasses.replace(program, ops=tuple(map(of_rank, program.ops)))


def _panels(program: Program, op: Op, shares: Shares, rank: int) -> tuple[int, int]:
    out = program.buffers[op.output]
    outputs_per_panel = PANEL // 2 if op.kind == "gate_up_silu" else PANEL
    num_panels = -(-out.width // outputs_per_panel)
    unit = max(out.format.group_size // outputs_per_panel, 1)
    first, last = shares.range(-(-num_panels // unit), rank)
    return first * unit, min(last * unit, num_panels)
