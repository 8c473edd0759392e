"""Of a rank's logits what the others need: first the largest of each group and the group with the largest of all, and
all of them only where more is looked at.

Every rank decides from the same numbers which it is. Called by the executor of a rank.
"""

from __future__ import annotations

import numpy as np

from qwench.program.ops import Op
from qwench.targets.cuda.devices.device import Communicator, Device, DeviceArray
from qwench.targets.cuda.launches.likeliest import launch_likeliest
from qwench.targets.cuda.memory.activations import Activation, Layout
from qwench.targets.cuda.ranks.gathers import Gathers, local_width
from qwench.targets.target import LOGIT_GROUP, Float32


class LogitGather:
    """op: the gather that ends a rank's Program. A row of what is exchanged: the maxima of a rank's groups, -inf beyond
    them, and its best group."""

    def __init__(self, device: Device, communicator: Communicator, gathers: Gathers, op: Op) -> None:
        self._device, self._communicator, self._gathers, self._op = device, communicator, gathers, op
        self._most_groups = -(-local_width(op) // LOGIT_GROUP)
        self._top = device.zeros("fp32", 0)

    def reserve(self, num_logits: int) -> bool:
        """Makes room for so many rows; whether all have other places than before."""
        needed = self._communicator.size * num_logits * self._top_width
        has_moved = self._gathers.reserve_logits(num_logits)
        if needed > self._top.size:
            self._top, has_moved = self._device.zeros("fp32", needed), True
        return has_moved

    def launch_top(self, num_logits: int) -> None:
        rank, (first, last) = self._communicator.rank, self._op.attrs["columns"][self._communicator.rank]
        width, groups = self._top_width, self._most_groups
        own = self._top.part(rank * num_logits * width, num_logits, width)
        logits = self._gathers.own_part(self._op, num_logits)
        launch_likeliest(
            self._device, logits, last - first, num_logits, own, own.part(groups, num_logits, width), groups
        )  # fmt: skip
        self._communicator.all_gather(own, self._all_tops(num_logits))

    def download_top(self, num_logits: int, num_groups: int) -> tuple[Float32, Float32]:
        """Of each row the maxima [num_logits, num_groups] of all groups, and the best group [num_logits, LOGIT_GROUP]
        of the rank that has the first of the largest."""
        tops: Float32 = np.empty((self._communicator.size, num_logits, self._top_width), np.float32)
        self._device.download(self._all_tops(num_logits), tops)
        maxima, owner = np.empty((num_logits, num_groups), np.float32), np.zeros(num_groups, np.intp)
        for rank, (first, last) in enumerate(self._op.attrs["columns"]):
            groups = slice(first // LOGIT_GROUP, -(-last // LOGIT_GROUP))
            if first < last:
                maxima[:, groups], owner[groups] = tops[rank, :, : groups.stop - groups.start], rank
        return maxima, tops[owner[maxima.argmax(axis=1)], np.arange(num_logits), self._most_groups :]

    def launch_all(self, num_logits: int, out: DeviceArray) -> None:
        """out: [at least num_logits, num_outputs] fp32."""
        layout = Layout(out.shape[1], out.shape[1], "plain")
        self._gathers.launch(self._op, None, num_logits, Activation(layout, out.shape[0], out, out, out), None)

    @property
    def _top_width(self) -> int:
        return self._most_groups + LOGIT_GROUP

    def _all_tops(self, num_logits: int) -> DeviceArray:
        return self._top.part(0, self._communicator.size, num_logits, self._top_width)
