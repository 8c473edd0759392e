"""How ranks share a Program: every product is split along its outputs, attention along its heads, sums never.

An output is computed by one rank, in the order in which one process computes it, so that bits don't depend on the
number of ranks. Ranks of one host find it in memory that they share; hosts send each other what theirs computed. Panels
of 64 packed columns are the unit, and of outputs that are quantised in groups as many as a group has. Every rank has a
share of each expert, and chooses the experts by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from qwench.checkpoint.spec import ModelSpec
from qwench.errors import ConfigError
from qwench.program.ops import Op, Program, matrices_of

PANEL = 64
Span = tuple[int, int]  # [first, last)


@dataclass(frozen=True)
class Shares:
    """How much of the work each rank takes, in parts of their sum; equal ones by default.

    hosts: number of ranks on each host, which share memory; ranks are numbered host by host.
    """

    parts: tuple[int, ...]
    hosts: tuple[int, ...]

    @classmethod
    def parse(cls, size: int, text: str | None, spec: ModelSpec, num_hosts: int = 1) -> Shares:
        """size: number of ranks, as many on each host. text: as "2,1,1", or None. Raises ConfigError for what this
        model can't be split into."""
        try:
            parts = (1,) * size if text is None else tuple(map(int, text.split(",")))
        except ValueError:
            parts = ()
        if len(parts) != size or any(part < 1 for part in parts):
            raise ConfigError(f"shares is {text!r}; it must be {size} numbers from 1 on, as 2,1,1 for three ranks")
        if size % num_hosts:
            raise ConfigError(f"{size} ranks can't be shared out among {num_hosts} hosts; take a multiple of that")
        shares = cls(parts, (size // num_hosts,) * num_hosts)
        heads = [shares.span(spec.num_heads, rank) for rank in range(size)]
        if any(first == last for first, last in heads):
            raise ConfigError(
                f"the model has {spec.num_heads} heads, too few for {size} ranks with shares of "
                f"{','.join(map(str, parts))}; take fewer ranks, or more equal shares"
            )
        return shares

    def span(self, count: int, rank: int) -> Span:
        """Which of `count` units a rank has: [first, last)."""
        whole = sum(self.parts)
        before = sum(self.parts[:rank])
        return round(count * before / whole), round(count * (before + self.parts[rank]) / whole)

    def ranks(self, host: int) -> range:
        first = sum(self.hosts[:host])
        return range(first, first + self.hosts[host])


def shard(program: Program, shares: Shares, rank: int) -> Program:
    """The Program of one rank: the same ops, products with attrs["panels"], those of attention with attrs["heads"], and
    what each host's ranks have of them, "host_panels" and "host_heads", which is gathered where hosts are several; and
    what each rank has, "rank_panels" and "rank_heads"."""

    def of_rank(op: Op) -> Op:
        if op.kind in ("attention", "qkv_rope_write"):
            return _with_shares(op, "heads", shares, rank, lambda r: shares.span(program.spec.num_heads, r))
        if matrices_of(op):
            return _with_shares(op, "panels", shares, rank, lambda r: _panels(program, op, shares, r))
        return op

    return dataclasses.replace(program, ops=tuple(map(of_rank, program.ops)))


def _with_shares(op: Op, unit: str, shares: Shares, rank: int, of_rank: Callable[[int], Span]) -> Op:
    spans = [(of_rank(ranks[0])[0], of_rank(ranks[-1])[1]) for ranks in map(shares.ranks, range(len(shares.hosts)))]
    each = [of_rank(r) for r in range(len(shares.parts))]
    return dataclasses.replace(op, attrs={**op.attrs, unit: each[rank], f"host_{unit}": spans, f"rank_{unit}": each})


def outputs_per_panel(program: Program, op: Op) -> int:
    """Of a product; a panel of two matrices has a half of either."""
    return PANEL // 2 if program.weights[op.weights[0]].paired else PANEL


def _panels(program: Program, op: Op, shares: Shares, rank: int) -> Span:
    out = program.buffers[op.output]
    per_panel = outputs_per_panel(program, op)
    num_panels = -(-out.width // per_panel)
    unit = max(out.format.group_size // per_panel, 1)
    first, last = shares.span(-(-num_panels // unit), rank)
    return min(first * unit, num_panels), min(last * unit, num_panels)
