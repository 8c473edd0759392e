"""How the interpreter's ranks bring together what each has computed: by way of memory that they share.

In the place of NCCL (`nccl.py`), so that all else of ranks with devices of their own runs on a CPU.
"""

from __future__ import annotations

import numpy as np

from qwench.errors import TargetError
from qwench.targets.cpu._native import Team as NativeTeam
from qwench.targets.cuda.devices.device import RANK_LOST, Device, DeviceArray
from qwench.targets.target import Bytes


class WindowCommunicator:
    """By way of the team's window, a part of it for each rank, as often as needed."""

    def __init__(self, device: Device, team: NativeTeam, rank: int, size: int) -> None:
        self._device, self._team, self.rank, self.size = device, team, rank, size
        window = team.window()
        self._parts = window[: len(window) // size * size].reshape(size, -1)

    def invitation(self) -> bytes:
        return b""  # they share the window from the beginning

    def join(self, invitation: bytes) -> None:
        pass

    def all_gather(self, source: DeviceArray, to: DeviceArray) -> None:
        own, whole = np.empty(source.num_bytes, np.uint8), np.empty((self.size, source.num_bytes), np.uint8)
        self._device.download(source, own)
        step = self._parts.shape[1]
        for first in range(0, len(own), step):
            self._exchange(own[first : first + step], whole[:, first : first + step])
        self._device.upload(whole, to)

    def _exchange(self, own: Bytes, whole: Bytes) -> None:
        self._parts[self.rank, : len(own)] = own
        self._wait()
        whole[:] = self._parts[:, : len(own)]
        self._wait()

    def _wait(self) -> None:
        if not self._team.barrier():
            raise TargetError(RANK_LOST)

    def close(self) -> None:
        pass
