"""What hosts will send each other, and the time that one user's token takes then: a prediction, made before there are
any. `qwench plan --tensor-parallel-size N --link 10Gbit,50us` prints it; docs/distributed.md has a table.

    time = most weight bytes of a host / speed of its memory + exchanges * latency + bytes in or out / speed of the link
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qwench.errors import ConfigError
from qwench.parallel.memory import share_of_ranks
from qwench.program.memory import buffer_bytes, rows_per_token
from qwench.program.ops import EXPERT_PRODUCTS, Buffer, Op, Program, matrices_of
from qwench.program.shard import PANEL, Shares, Span, outputs_per_panel, shard

_RATES = {"mbit": 1e6, "gbit": 1e9}
_TIMES = {"us": 1e-6, "ms": 1e-3}


@dataclass(frozen=True)
class Network:
    """bytes_per_s: each way. latency_s: of a small message, from memory to memory."""

    bytes_per_s: float
    latency_s: float

    @classmethod
    def parse(cls, text: str) -> Network:
        """text: as 10Gbit,50us. Raises ConfigError."""
        match = re.fullmatch(r"([\d.]+)\s*([mg]bit)(?:/s)?\s*,\s*([\d.]+)\s*([um]s)", text.strip().lower(), re.ASCII)
        try:
            rate, latency = (float(match[1]), float(match[3])) if match else (0.0, 0.0)
        except ValueError:
            rate = latency = 0.0
        if not match or not rate or not latency:
            raise ConfigError(f"--link is {text!r}; give rate and latency, as 10Gbit,50us or 100Mbit,1ms")
        return cls(rate * _RATES[match[2]] / 8, latency * _TIMES[match[4]])


@dataclass(frozen=True)
class Exchange:
    """Behind one op: the bytes of one row that each host computed; to_all: else to host 0 alone. follows: it leaves
    with the one before it, whose latency is that of both."""

    op: str
    row_bytes: tuple[float, ...]
    to_all: bool = True
    follows: bool = False

    def seconds(self, network: Network) -> float:
        """Everybody sends what is its own to everybody, at once."""
        size, everything = len(self.row_bytes), sum(self.row_bytes)
        if self.to_all:
            most = max(max(own * (size - 1), everything - own) for own in self.row_bytes)
        else:
            most = everything - self.row_bytes[0]
        return most / network.bytes_per_s + (0.0 if self.follows else network.latency_s)


@dataclass(frozen=True)
class Forecast:
    """Of one greedy token of one user. sent_bytes: by the host that sends most."""

    num_exchanges: int
    sent_bytes: float
    compute_s: float
    link_s: float

    @property
    def seconds(self) -> float:
        return self.compute_s + self.link_s


def forecast(
    program: Program, weight_bytes: Mapping[str, int], shares: Shares, network: Network, read_bytes_per_s: float
) -> Forecast:
    """weight_bytes: of each packed weight. read_bytes_per_s: a host's memory, as a step of one token reads it."""
    hosts = range(len(shares.hosts))
    found = exchanges(program, shares)
    sent = [
        sum(e.row_bytes[host] * (len(hosts) - 1 if e.to_all else host > 0) for e in found if len(hosts) > 1)
        for host in hosts
    ]
    read = {**weight_bytes, **_read_of_experts(program, weight_bytes)}
    weights = [share_of_ranks(program, read, shares, shares.ranks(host)).weight_bytes for host in hosts]
    return Forecast(len(found), max(sent), max(weights) / read_bytes_per_s, sum(e.seconds(network) for e in found))


def _read_of_experts(program: Program, weight_bytes: Mapping[str, int]) -> dict[str, float]:
    """What a token reads of each expert on average."""
    experts = program.spec.experts
    names = [name for op in program.ops if op.kind in EXPERT_PRODUCTS for name in op.weights]
    return {} if experts is None else {n: weight_bytes[n] * experts.top_k / experts.num_experts for n in names}


def exchanges(program: Program, shares: Shares, top_groups: int = 1) -> list[Exchange]:
    """In order; none for a single host. What `Executor::gather` of the cpu target does. top_groups: of a row of logits,
    as `StepBatch` has them; by default of a greedy one."""
    if len(shares.hosts) == 1:
        return []
    result = []
    for op in shard(program, shares, 0).ops:
        out = program.buffers.get(op.output)
        if op.kind == "attention" and out is not None:
            columns = [_scaled(heads, program.spec.head_dim) for heads in op.attrs["host_heads"]]
            result.append(_exchange(op, _as_sent(op, out, columns), columns))
        elif matrices_of(op) and op.kind != "qkv_rope_write" and out is not None:
            columns = [_scaled(panels, outputs_per_panel(program, op)) for panels in op.attrs["host_panels"]]
            if out.name in program.results:
                result += _exchanges_of_logits(op, out, columns, top_groups)
            else:
                result.append(_exchange(op, out, columns, rows_per_token(program, out)))
    return result


def _exchange(op: Op, out: Buffer, columns: Sequence[Span], num_rows: int = 1) -> Exchange:
    sizes = []
    for first, last in columns:
        width = min(last, out.width) - first
        sizes.append(buffer_bytes(Buffer(out.name, width, out.rows, out.format), num_rows) if width > 0 else 0.0)
    return Exchange(op.name, tuple(sizes))


def _exchanges_of_logits(op: Op, out: Buffer, columns: Sequence[Span], top_groups: int) -> list[Exchange]:
    """To host 0: first the largest of each panel, then what is looked at of the logits, mostly whole panels."""
    widths = [max(min(last, out.width) - first, 0) for first, last in columns]
    maxima = tuple(4.0 * -(-width // PANEL) for width in widths)
    logits = tuple(4.0 * (min(width, top_groups * PANEL) if top_groups else width) for width in widths)
    return [Exchange(op.name, maxima, to_all=False), Exchange(op.name, logits, to_all=False, follows=True)]


def _as_sent(op: Op, out: Buffer, columns: Sequence[Span]) -> Buffer:
    """Attention is sent as the next product reads it, unless that needs other hosts' columns: then as fp32."""
    is_apart = not op.weights and all(first % max(out.format.group_size, 2) == 0 for first, _ in columns)
    return out if is_apart else Buffer(out.name, out.width, out.rows)


def _scaled(span: Span, factor: int) -> Span:
    return span[0] * factor, span[1] * factor
