"""Buffers of a Program on the device: plain fp32, or what a product multiplies (kernels/activations.py).

Which of these a buffer is follows from its format and from the matrix that reads it. A buffer's memory serves the next
one of its kind once its last reader has run. Called by the lowering.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from qwench.errors import TargetError
from qwench.formats import Format
from qwench.program.memory import rows_per_token
from qwench.program.ops import Op, Program, matrices_of
from qwench.targets.cuda.devices.device import Device, DeviceArray
from qwench.targets.cuda.memory.weights import padded_width

NO_GROUP = 32  # a size for kernels that are compiled for activations without groups


@dataclass(frozen=True)
class Layout:
    """width: values of a row, padded to `k_padded` where products read it. group_size: of what has a scale or a sum
    each; 0 where nothing has."""

    width: int
    k_padded: int
    kind: Literal["plain", "floats", "codes"]
    parts: int = 1
    group_size: int = 0
    has_sums: bool = False

    @property
    def num_groups(self) -> int:
        return self.k_padded // self.group_size if self.group_size else 0


@dataclass(frozen=True)
class Activation:
    """values: [parts, num_rows, k_padded] fp32, bf16 or int8; scales, sums: [num_groups, num_rows] fp32."""

    layout: Layout
    num_rows: int
    values: DeviceArray
    scales: DeviceArray
    sums: DeviceArray

    def as_output(self) -> dict[str, Any]:
        """Arguments of kernels that end with `store_activation`."""
        at = self.layout
        return {
            "out": self.values, "scales": self.scales, "sums": self.sums, "num_rows": self.num_rows,
            "K_PAD": at.k_padded, "KIND": at.kind, "PARTS": at.parts, "GROUP": at.group_size or NO_GROUP,
            "HAS_SUMS": at.has_sums,
        }  # fmt: skip


def layout_of(program: Program, name: str) -> Layout:
    """How the buffer `name` is stored. Raises TargetError where products need sums over groups of several sizes."""
    buffer, weights = program.buffers[name], _multiplied_with(program, name)
    if not weights:
        return Layout(buffer.width, buffer.width, "plain")
    kind, parts = _PARTS[buffer.format.kind]
    summed = {fmt.group_size for fmt in weights if fmt.offsets}
    if len(summed) > 1:
        raise TargetError(
            f"{name} is multiplied with matrices that have offsets in groups of "
            f"{' and '.join(map(str, sorted(summed)))}; give them one group size, or say --target cpu"
        )
    group_size = buffer.format.group_size or max(summed, default=0)
    k_padded = max(padded_width(buffer.width, fmt) for fmt in weights)
    return Layout(buffer.width, k_padded, kind, parts, group_size, bool(summed))


def multiplied_by(op: Op) -> tuple[str, ...]:
    """The matrices that inputs[0] is multiplied with; a router is one of them here."""
    return op.weights if op.kind == "route" else matrices_of(op)


def _multiplied_with(program: Program, name: str) -> set[Format]:
    """The formats of the matrices that rows of a buffer, or copies of them, are multiplied with."""
    readers = [op for op in program.consumers(name) if op.inputs[0] == name]
    found = {program.weights[matrix].format for op in readers for matrix in multiplied_by(op)}
    return found.union(*(_multiplied_with(program, op.output) for op in readers if op.kind == "dispatch"))


_PARTS: dict[str, tuple[Literal["floats", "codes"], int]] = {
    "fp32": ("floats", 3), "bf16": ("floats", 1), "int8": ("codes", 1), "int16": ("codes", 2),
}  # fmt: skip


class Buffers:
    """Hands out memory for the rows of `num_tokens` tokens while a Program is lowered."""

    def __init__(self, device: Device, program: Program, num_tokens: int) -> None:
        self._device, self._program, self._num_tokens = device, program, num_tokens
        self._free: dict[tuple[Layout, int], list[Activation]] = {}
        self._used: dict[str, Activation] = {}
        self._last_use = {name: op.name for op in program.ops for name in (op.output, *op.inputs)}

    def __getitem__(self, name: str) -> Activation:
        return self._used[name]

    def new(self, name: str) -> Activation:
        """For the output of the op that is lowered now."""
        layout = layout_of(self._program, name)
        num_rows = self._num_tokens * rows_per_token(self._program, self._program.buffers[name])
        free = self._free.get((layout, num_rows))
        self._used[name] = free.pop() if free else self._make(layout, num_rows)
        return self._used[name]

    def take_over(self, name: str, before: str) -> Activation:
        """The output `name` in the place of an input that nobody reads any more."""
        self._used[name] = self._used.pop(before)
        return self._used[name]

    def release(self, op_name: str) -> None:
        """Frees what this op was the last to touch."""
        for name in [name for name in self._used if self._last_use[name] == op_name]:
            activation = self._used.pop(name)
            self._free.setdefault((activation.layout, activation.num_rows), []).append(activation)

    def _make(self, at: Layout, num_rows: int) -> Activation:
        dtype = {"plain": "fp32", "floats": "bf16", "codes": "i8"}[at.kind]
        groups = max(at.num_groups, 1)
        scales = self._device.zeros("fp32", groups, num_rows if at.kind == "codes" else 1)
        sums = self._device.zeros("fp32", groups, num_rows) if at.has_sums else scales
        values = self._device.zeros(dtype, at.parts, num_rows, at.k_padded)
        return Activation(at, num_rows, values, scales, sums)
