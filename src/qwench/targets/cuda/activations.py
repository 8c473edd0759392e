"""Buffers of a Program on the device: plain fp32, or what a product multiplies (kernels/activations.py).

Which of these a buffer is follows from its format and from the matrix that reads it. A buffer's memory serves the next
one of its kind once its last reader has run. Called by the lowering.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from qwench.formats import Format
from qwench.program.ops import PRODUCTS, Program
from qwench.targets.cuda.device import Device, DeviceArray
from qwench.targets.cuda.weights import padded_width

NO_GROUP = 32  # a size for kernels that are compiled for activations without groups


@dataclass(frozen=True)
class Layout:
    """width: values of a row, padded to `k_padded` where a product reads it. group_size: 0 where the matrix has
    none."""

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
    """How the buffer `name` is stored."""
    buffer = program.buffers[name]
    reader = next((op for op in program.consumers(name) if op.kind in PRODUCTS and op.inputs[0] == name), None)
    if reader is None:
        return Layout(buffer.width, buffer.width, "plain")
    weights, fmt = program.weights[reader.weights[0]].format, buffer.format
    kind, parts = _PARTS[fmt.kind]
    return Layout(
        buffer.width, padded_width(buffer.width, weights), kind, parts, weights.group_size, _needs_sums(weights)
    )


_PARTS: dict[str, tuple[Literal["floats", "codes"], int]] = {
    "fp32": ("floats", 3), "bf16": ("floats", 1), "int8": ("codes", 1), "int16": ("codes", 2),
}  # fmt: skip


def _needs_sums(weights: Format) -> bool:
    return bool(weights.offsets)


class Buffers:
    """Hands out memory for `num_rows` rows while a Program is lowered."""

    def __init__(self, device: Device, program: Program, num_rows: int) -> None:
        self._device, self._program, self.num_rows = device, program, num_rows
        self._free: dict[Layout, list[Activation]] = {}
        self._used: dict[str, Activation] = {}
        self._last_use = {name: op.name for op in program.ops for name in (op.output, *op.inputs)}

    def __getitem__(self, name: str) -> Activation:
        return self._used[name]

    def new(self, name: str) -> Activation:
        """For the output of the op that is lowered now."""
        layout = layout_of(self._program, name)
        free = self._free.get(layout)
        self._used[name] = free.pop() if free else self._make(layout)
        return self._used[name]

    def take_over(self, name: str, residual: str) -> Activation:
        """The output `name` in the place of an input that nobody reads any more."""
        self._used[name] = self._used.pop(residual)
        return self._used[name]

    def release(self, op_name: str) -> None:
        """Frees what this op was the last to touch."""
        for name in [name for name in self._used if self._last_use[name] == op_name]:
            activation = self._used.pop(name)
            self._free.setdefault(activation.layout, []).append(activation)

    def _make(self, at: Layout) -> Activation:
        dtype = {"plain": "fp32", "floats": "bf16", "codes": "i8"}[at.kind]
        groups = max(at.num_groups, 1)
        scales = self._device.zeros("fp32", groups, self.num_rows if at.kind == "codes" else 1)
        sums = self._device.zeros("fp32", groups, self.num_rows) if at.has_sums else scales
        values = self._device.zeros(dtype, at.parts, self.num_rows, at.k_padded)
        return Activation(at, self.num_rows, values, scales, sums)
