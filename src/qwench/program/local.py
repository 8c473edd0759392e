"""The Program of a rank whose memory is its own, as a GPU's is: its heads, its outputs, and `gather` ops that bring
those of all ranks together where the next op needs them whole.

Made of a rank's sharded Program (`shard.py`), which says what is whose. A rank computes the query heads of each kv head
that it keeps, those of its neighbour too where both keep one. Called by targets whose ranks share no memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from qwench.checkpoint.spec import ModelSpec
from qwench.errors import TargetError
from qwench.program.ops import Buffer, Op, Program, Weight
from qwench.program.shard import Span, outputs_per_panel

SHARED_KINDS = ("embed", "rms_norm", "take_rows", "relu")  # which each rank computes whole


@dataclass(frozen=True)
class Share:
    """Rows of a weight of the whole Program, in order."""

    weight: str
    rows: tuple[Span, ...]


@dataclass(frozen=True)
class LocalProgram:
    """program: its buffers before a `gather` are as wide as the widest rank's. shares: by name, of the weights that it
    has parts of; all others are whole.

    A gather's attrs: "columns" [first, last) of its output that each rank has, "starts", where these begin in that
    rank's input; "width" of the inputs; and "has_own": a rank without columns gives the gather what others compute
    theirs from, so that it is read there, too.
    """

    program: Program
    shares: dict[str, Share]


def local_program(program: Program) -> LocalProgram:
    """program: sharded. Raises TargetError for ops that can't be computed so."""
    return _Localizer(program).run()


def local_heads(spec: ModelSpec, heads: Span) -> tuple[Span, Span]:
    """Of a rank with these query heads: the kv heads that it keeps, and all query heads of those."""
    per_kv_head = spec.num_heads // spec.num_kv_heads
    kv_heads = heads[0] // per_kv_head, (heads[1] - 1) // per_kv_head + 1
    return kv_heads, _scaled(kv_heads, per_kv_head)


class _Localizer:
    def __init__(self, program: Program) -> None:
        self._whole = program
        self._ops: list[Op] = []
        self._buffers = dict(program.buffers)
        self._weights: dict[str, Weight] = {}
        self._shares: dict[str, Share] = {}
        heads = next(op.attrs["heads"] for op in program.ops if "heads" in op.attrs)
        self._kv_heads, self._heads = local_heads(program.spec, heads)

    def run(self) -> LocalProgram:
        for op in self._whole.ops:
            if op.kind in SHARED_KINDS:
                self._ops.append(op)
                self._weights |= {name: self._whole.weights[name] for name in op.weights}
            elif hasattr(self, f"_{op.kind}"):
                getattr(self, f"_{op.kind}")(op)
            else:
                raise TargetError(
                    f"op {op.name} of kind {op.kind} can't be shared out among GPUs yet; leave tensor_parallel_size out"
                )
        spec = dataclasses.replace(
            self._whole.spec,
            num_heads=self._heads[1] - self._heads[0],
            num_kv_heads=self._kv_heads[1] - self._kv_heads[0],
        )
        outputs = {op.output for op in self._ops}
        buffers = {name: buffer for name, buffer in self._buffers.items() if name in outputs}
        return LocalProgram(Program(spec, buffers, self._weights, tuple(self._ops)), self._shares)

    def _qkv_rope_write(self, op: Op) -> None:
        spec = self._whole.spec
        keys = _scaled((spec.num_heads + self._kv_heads[0], spec.num_heads + self._kv_heads[1]), spec.head_dim)
        rows = (_scaled(self._heads, spec.head_dim), keys, (keys[0] + spec.kv_size, keys[1] + spec.kv_size))
        shared = op.weights[: 2 if len(op.weights) == 2 else 1]  # norms of q and k are those of any head
        names = [self._share(name, rows) if name in shared else self._keep(name) for name in op.weights]
        self._resize(op.output, rows[0][1] - rows[0][0])
        self._ops.append(dataclasses.replace(op, weights=tuple(names)))

    def _attention(self, op: Op) -> None:
        spec, heads = self._whole.spec, op.attrs["rank_heads"]
        computed = [local_heads(spec, each)[1] for each in heads]
        columns = [_scaled(each, spec.head_dim) for each in heads]
        starts = [(own[0] - all_[0]) * spec.head_dim for own, all_ in zip(heads, computed, strict=True)]
        width = max((last - first) * spec.head_dim for first, last in computed)
        local = self._local_buffer(op.output, width)
        self._ops.append(dataclasses.replace(op, output=local, weights=()))
        order = tuple(self._keep(name) for name in op.weights)
        self._gather(op.output, local, columns, starts, order)

    def _gate_up_silu(self, op: Op) -> None:
        columns, (first, last) = self._columns(op)
        half = self._whole.weights[op.weights[0]].shape[0] // 2
        self._product(op, op.output, columns, ((first, last), (half + first, half + last)))

    def _linear(self, op: Op) -> None:
        columns, own = self._columns(op)
        self._product(op, op.output, columns, (own,))

    def _linear_add(self, op: Op) -> None:
        total = f"{op.output}.sum"
        self._buffers[total] = dataclasses.replace(self._buffers[op.output], name=total)
        columns, own = self._columns(op)
        self._product(dataclasses.replace(op, kind="linear", inputs=op.inputs[:1]), total, columns, (own,))
        self._ops.append(Op("add", f"{op.name}.add", (total, op.inputs[1]), op.output))

    def _product(self, op: Op, output: str, columns: list[Span], rows: tuple[Span, ...]) -> None:
        """The rank's rows of the matrix, if it has any, and those of all gathered into `output`."""
        local = self._local_buffer(output, max(last - first for first, last in columns))
        has_rows = rows[0][0] < rows[0][1]
        if has_rows:
            names = (self._share(op.weights[0], rows), *(self._share(name, rows) for name in self._biases(op)))
            self._ops.append(dataclasses.replace(op, output=local, weights=names))
        self._gather(output, local if has_rows else op.inputs[0], columns, [0] * len(columns), (), has_rows)

    def _biases(self, op: Op) -> tuple[str, ...]:
        return op.weights[1:] if op.kind == "linear" else ()  # the order that gate_up_silu has is its rows' already

    def _gather(
        self, output: str, source: str, columns: Sequence[Span], starts: Sequence[int], order: tuple[str, ...],
        has_own: bool = True,
    ) -> None:  # fmt: skip
        width = self._buffers[f"{output}.local"].width
        attrs = {"columns": list(columns), "starts": list(starts), "width": width, "has_own": has_own}
        self._ops.append(Op("gather", f"{output}.gather", (source,), output, order, attrs))

    def _columns(self, op: Op) -> tuple[list[Span], Span]:
        """Of the output of a product: each rank's, and this one's."""
        width, factor = self._whole.buffers[op.output].width, outputs_per_panel(self._whole, op)

        def clipped(panels: Span) -> Span:
            return min(panels[0] * factor, width), min(panels[1] * factor, width)

        return [clipped(panels) for panels in op.attrs["rank_panels"]], clipped(op.attrs["panels"])

    def _keep(self, name: str) -> str:
        self._weights[name] = self._whole.weights[name]
        return name

    def _share(self, name: str, rows: tuple[Span, ...]) -> str:
        """Its name is another than the whole one's, which an embedding may need as well."""
        whole, local = self._whole.weights[name], f"{name}.local"
        count = sum(last - first for first, last in rows)
        self._weights[local] = dataclasses.replace(whole, name=local, shape=(count, *whole.shape[1:]))
        self._shares[local] = Share(name, rows)
        return local

    def _local_buffer(self, name: str, width: int) -> str:
        self._buffers[f"{name}.local"] = Buffer(f"{name}.local", width, self._buffers[name].rows)
        return f"{name}.local"

    def _resize(self, name: str, width: int) -> None:
        self._buffers[name] = dataclasses.replace(self._buffers[name], width=width)


def _scaled(span: Span, factor: int) -> Span:
    return span[0] * factor, span[1] * factor
