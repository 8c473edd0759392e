"""Launches of `gather` ops: each rank's columns are brought together, and written as the next op reads them.

Owns the memory where they meet. Called by the lowering of a rank's Program (program/local.py).
"""

from __future__ import annotations

import numpy as np

from qwench.program.ops import Op, Program
from qwench.targets.cuda.devices.device import Communicator, Device, DeviceArray, new_array
from qwench.targets.cuda.launches.attention import power_of_two
from qwench.targets.cuda.memory.activations import Activation

BLOCK = 1024  # columns of a program


class Gathers:
    """num_rows: of buffers, at most. of_logits: the op that gathers them, if there are any."""

    def __init__(self, device: Device, program: Program, communicator: Communicator, num_rows: int) -> None:
        self._device, self._communicator = device, communicator
        ops = [op for op in program.ops if op.kind == "gather"]
        widths = {op.output: local_width(op) for op in ops}
        self.of_logits = next((op for op in ops if op.output == program.logits), None)
        self._logits_width = widths.pop(program.logits or "", 0)
        self._memory = device.zeros("fp32", communicator.size * num_rows * max(widths.values(), default=0))
        self._spans = {op.output: new_array(device, _spans(op), "i32") for op in ops}

    def reserve_logits(self, num_logits: int) -> bool:
        """Makes room for so many rows; whether all has another place than before."""
        needed = self._communicator.size * num_logits * self._logits_width
        if needed <= self._memory.size:
            return False
        self._memory = self._device.zeros("fp32", needed)
        return True

    def own_part(self, op: Op, count: int) -> DeviceArray:
        """Where `count` rows of this rank's columns may be written in place of a buffer."""
        width = local_width(op)
        return self._memory.part(self._communicator.rank * count * width, count, width)

    def launch(
        self, op: Op, source: DeviceArray | None, count: int, out: Activation, order: DeviceArray | None
    ) -> None:
        """source: [at least count, local_width] fp32, or None: what is in `own_part`."""
        from qwench.targets.cuda.kernels.gather import join_columns

        if not count:
            return
        width, size, at = local_width(op), self._communicator.size, out.layout
        own = self.own_part(op, count) if source is None else source.part(0, count, width)
        gathered, spans = self._memory.part(0, size, count, width), self._spans[op.output]
        self._communicator.all_gather(own, gathered)
        block = min(BLOCK, power_of_two(at.k_padded, at.group_size))
        self._device.launch(
            join_columns, (count, -(-at.k_padded // block), 1), gathered=gathered, spans=spans, order=order or spans,
            gathered_rows=count, WIDTH=at.width, LOCAL_WIDTH=width, RANKS=size, HAS_ORDER=order is not None,
            BLOCK=block, **out.as_output(),
        )  # fmt: skip


def local_width(op: Op) -> int:
    """Of a gather's input: as wide as that of any rank."""
    return int(op.attrs["width"])


def _spans(op: Op) -> np.ndarray:
    firsts = [first for first, _ in op.attrs["columns"]]
    return np.stack([firsts, op.attrs["starts"]], axis=1).astype(np.int32)
