"""Stand-ins for the driver of GPUs and for NCCL, over the host's memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qwench.targets.cuda.devices.driver import Driver
from qwench.targets.cuda.devices.gpu import Gpu

OUT_OF_MEMORY, NO_DEVICE, GONE, NOT_READY = 2, 100, 46, 600


class FakeLibrary:
    """libcuda over the host's memory. failing: what functions return instead of doing it; calls: names, in order."""

    def __init__(self, capability: tuple[int, int] = (9, 0), count: int = 1, **failing: int) -> None:
        self.capability, self.count, self.failing = capability, count, failing
        self.calls: list[str] = []
        self.memory: dict[int, Any] = {}
        self.nccl: FakeNccl | None = None  # which the stream waits for

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.failing:
                return self.failing[name]
            return int(getattr(self, f"_{name}", lambda *_: 0)(*arguments) or 0)

        return call

    def _cuGetErrorName(self, result: int, text: Any) -> None:
        text._obj.value = b"CUDA_ERROR_DEVICE_UNAVAILABLE"

    def _cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = self.count

    def _cuDeviceGetName(self, text: Any, size: int, device: Any) -> None:
        text.value = b"Fake H100"

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> None:
        value._obj.value = {75: self.capability[0], 76: self.capability[1], 97: 227 << 10}[attribute]

    def _cuMemGetInfo_v2(self, free: Any, total: Any) -> None:
        free._obj.value, total._obj.value = 70 << 30, 80 << 30

    def _cuMemAlloc_v2(self, address: Any, size: Any) -> None:
        memory = ctypes.create_string_buffer(b"\xff" * size.value, size.value)
        address._obj.value = ctypes.addressof(memory)
        self.memory[address._obj.value] = memory

    def _cuMemFree_v2(self, address: Any) -> None:
        del self.memory[address.value]

    def _cuMemsetD8Async(self, address: Any, value: Any, size: Any, stream: Any) -> None:
        ctypes.memset(address.value, value.value, size.value)

    def _cuMemcpyHtoDAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> None:
        ctypes.memmove(to.value, source.value, size.value)

    def _cuMemcpyDtoHAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> None:
        ctypes.memmove(to.value, source.value, size.value)

    _cuMemcpyDtoDAsync_v2 = _cuMemcpyHtoDAsync_v2

    def _cuStreamQuery(self, stream: Any) -> int:
        return NOT_READY if self.nccl is not None and self.nccl.is_waiting else 0


def gpu(**fake: Any) -> tuple[Gpu, FakeLibrary]:
    library = FakeLibrary(**fake)
    return Gpu(Driver(library)), library


@dataclass
class World:
    """Where the ranks of a FakeNccl meet: of each all-gather the places of those that are there already."""

    size: int = 2
    gathers: dict[int, dict[int, tuple[int, int]]] = field(default_factory=dict)


class FakeNccl:
    """libnccl: a gather is done once all ranks of the world have asked for it. failing, calls: as of FakeLibrary.

    version, async_error: what it gives. stall: called by ncclCommInitRank.
    """

    def __init__(
        self, world: World, version: int = 22304, async_error: int = 0, stall: Callable[[], object] = lambda: None,
        **failing: int,
    ) -> None:  # fmt: skip
        self.world, self.version, self.async_error, self.stall, self.failing = (
            world, version, async_error, stall, failing
        )  # fmt: skip
        self.calls: list[str] = []
        self.rank, self.num_gathers = -1, 0
        self.ncclGetErrorString = _ErrorString()

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("nccl"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.failing:
                return self.failing[name]
            return int(getattr(self, f"_{name}", lambda *_: 0)(*arguments) or 0)

        return call

    @property
    def is_waiting(self) -> bool:
        """For another rank, on its GPU."""
        return any(len(self.world.gathers.get(i, ())) < self.world.size for i in range(self.num_gathers))

    def _ncclGetVersion(self, version: Any) -> None:
        version._obj.value = self.version

    def _ncclGetUniqueId(self, unique_id: Any) -> None:
        unique_id._obj.internal = b"the id"

    def _ncclCommInitRank(self, communicator: Any, size: Any, unique_id: Any, rank: Any) -> None:
        assert (size.value, unique_id.internal) == (self.world.size, b"the id")
        self.stall()
        self.rank, communicator._obj.value = rank.value, 77

    def _ncclCommGetAsyncError(self, communicator: Any, result: Any) -> None:
        result._obj.value = self.async_error

    def _ncclCommAbort(self, communicator: Any) -> None:
        assert communicator.value == 77
        self.num_gathers = 0

    def _ncclAllGather(self, source: Any, to: Any, count: Any, dtype: Any, communicator: Any, stream: Any) -> None:
        assert (dtype.value, communicator.value) == (1, 77)
        places = self.world.gathers.setdefault(self.num_gathers, {})
        places[self.rank] = (source.value, to.value)
        self.num_gathers += 1
        if len(places) == self.world.size:
            for rank, (sent, _) in places.items():
                for _, received in places.values():
                    ctypes.memmove(received + rank * count.value, sent, count.value)


class _ErrorString:
    restype: object = None

    def __call__(self, result: Any) -> bytes:
        return b"remote process exited or there was a network error" if result.value == 6 else b"system error"
