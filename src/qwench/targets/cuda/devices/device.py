"""What the executor needs of a machine: memory, copies, launches, and sequences of launches recorded once.

Two implement it: `gpu.py` for a real one, `interpreter.py` for the CPU. Everything above this line is the same for
both.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from qwench.targets.cpu._native import Team as NativeTeam

HostArray: TypeAlias = npt.NDArray[Any]
Grid: TypeAlias = tuple[int, int, int]
Replay: TypeAlias = Callable[[], None]

RANK_LOST = "a rank was lost"  # an error that whoever knows which one replaces

NUMPY_DTYPES: dict[str, Any] = {
    "fp32": np.float32, "bf16": ml_dtypes.bfloat16, "i64": np.int64, "i32": np.int32, "i8": np.int8, "u8": np.uint8,
}  # fmt: skip


@dataclass(frozen=True)
class DeviceArray:
    """Values in the device's memory, contiguous. dtype: as Triton names it, a key of NUMPY_DTYPES. memory: keeps the
    bytes alive."""

    pointer: int
    dtype: str
    shape: tuple[int, ...]
    memory: object

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.size * self.itemsize

    @property
    def itemsize(self) -> int:
        return int(np.dtype(NUMPY_DTYPES[self.dtype]).itemsize)

    def part(self, first: int, *shape: int) -> DeviceArray:
        """The values from the `first` on, counted as if the array had one dimension."""
        return dataclasses.replace(self, pointer=self.pointer + first * self.itemsize, shape=shape)

    def as_dtype(self, dtype: str) -> DeviceArray:
        """The same bytes read as other values, in one dimension."""
        itemsize = np.dtype(NUMPY_DTYPES[dtype]).itemsize
        return dataclasses.replace(self, dtype=dtype, shape=(self.num_bytes // itemsize,))


class Communicator(Protocol):
    """rank: this one's number, of `size`. All call the same, in the same order."""

    rank: int
    size: int

    def invitation(self) -> bytes:
        """Of the first rank: what all need to join."""
        ...

    def join(self, invitation: bytes) -> None:
        """Once all are there, before anything is gathered. Raises TargetError when one isn't any more."""
        ...

    def all_gather(self, source: DeviceArray, to: DeviceArray) -> None:
        """to: [size, *source's shape], those of all ranks; the source may be its own part of it. Behind what was asked
        of the device before, and recorded with it. Raises TargetError once a rank was lost."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


class Device(Protocol):
    """One machine. What is asked of it happens in that order; `download` waits for its end."""

    name: str
    shared_bytes: int  # fast memory that a program may have

    @property
    def free_bytes(self) -> int:
        """Memory that could be allocated now."""
        ...

    def zeros(self, dtype: str, *shape: int) -> DeviceArray:
        """Raises CapacityError where there is too little memory."""
        ...

    def upload(self, values: HostArray, to: DeviceArray) -> None:
        """Copies the bytes of a contiguous array, which may change once this returns."""
        ...

    def download(self, source: DeviceArray, to: HostArray) -> None:
        """Copies the bytes into a contiguous array, and returns when they are there."""
        ...

    def copy(self, source: DeviceArray, to: DeviceArray) -> None: ...

    def launch(self, kernel: Any, grid: Grid, *, num_warps: int = 4, num_stages: int = 3, **arguments: Any) -> None:
        """Runs a function of `kernels/` for each place of the grid. Arguments by name: DeviceArrays, numbers, and what
        is constant at compile time."""
        ...

    def record(self, launches: Callable[[], None]) -> Replay:
        """What runs again the launches that `launches` makes, all at once, with the arguments of now."""
        ...

    def synchronize(self) -> None:
        """Waits for the end of all that was asked. Raises TargetError for what failed."""
        ...

    def communicator(self, team: NativeTeam, rank: int, size: int) -> Communicator:
        """With the devices of the other ranks of a team."""
        ...

    def close(self) -> None:
        """Frees everything. Idempotent."""
        ...


def new_array(device: Device, values: HostArray, dtype: str) -> DeviceArray:
    """`values` on the device."""
    array = device.zeros(dtype, *values.shape)
    device.upload(np.ascontiguousarray(values, NUMPY_DTYPES[dtype]), array)
    return array
