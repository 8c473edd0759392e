"""The device of `cuda`: one NVIDIA GPU, its memory, a stream of launches and copies, and CUDA graphs of launches."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from qwench.errors import QwenchError, TargetError
from qwench.host import interprets_triton
from qwench.targets.cpu._native import Team as NativeTeam
from qwench.targets.cuda.devices.compilation import Variant, compile_kernel, variant_of
from qwench.targets.cuda.devices.device import NUMPY_DTYPES, DeviceArray, Grid, HostArray, Replay
from qwench.targets.cuda.devices.driver import Driver, load_driver
from qwench.targets.cuda.devices.nccl import NcclCommunicator, load_nccl

OLDEST = (8, 0)  # the first with bf16 in its tensor cores: Ampere


@dataclass(frozen=True)
class _Function:
    """A compiled kernel on the GPU."""

    handle: int
    num_threads: int
    shared_bytes: int


class Gpu:
    """One of the GPUs that the driver shows this process, as $CUDA_VISIBLE_DEVICES chooses and orders them. Use it in
    one thread at a time."""

    def __init__(self, driver: Driver, ordinal: int = 0) -> None:
        """Raises TargetError for a GPU that isn't there, or too old."""
        self._driver = driver
        if not (count := driver.count()):
            raise TargetError("there is a driver and no GPU that it shows to this process; take --target cpu")
        if ordinal >= count:
            raise TargetError(
                f"rank {ordinal} needs a GPU of its own, and the driver shows {count} to this process; lower "
                "tensor_parallel_size, or let $CUDA_VISIBLE_DEVICES name more"
            )
        self.count = count
        device = driver.device(ordinal)
        self.name, (major, minor) = driver.device_name(device), driver.capability(device)
        if (major, minor) < OLDEST:
            raise TargetError(
                f"the GPU {self.name} has compute capability {major}.{minor}; the target cuda needs "
                f"{OLDEST[0]}.{OLDEST[1]} or newer (Ampere), whose tensor cores multiply bf16; take --target cpu"
            )
        self._arch, self.shared_bytes = 10 * major + minor, driver.shared_bytes(device)
        self._context = driver.retain_context(device)
        driver.set_context(self._context)
        self._stream = driver.new_stream()
        self._functions: dict[tuple[int, Variant], _Function] = {}
        self._communicator: NcclCommunicator | None = None  # of the ranks that what is asked of it may wait for

    @property
    def free_bytes(self) -> int:
        self._driver.set_context(self._context)
        return self._driver.memory_info()[0]

    def zeros(self, dtype: str, *shape: int) -> DeviceArray:
        num_bytes = max(math.prod(shape) * np.dtype(NUMPY_DTYPES[dtype]).itemsize, 1)
        memory = _Memory(self._driver, self._context, num_bytes)
        self._driver.clear(memory.address, num_bytes, self._stream)
        return DeviceArray(memory.address, dtype, shape, memory)

    def upload(self, values: HostArray, to: DeviceArray) -> None:
        assert values.nbytes <= to.num_bytes
        self._wait_for_ranks()
        self._driver.copy_in(to.pointer, values.ctypes.data, values.nbytes, self._stream)
        self._driver.synchronize(self._stream)

    def download(self, source: DeviceArray, to: HostArray) -> None:
        assert to.nbytes <= source.num_bytes
        self._wait_for_ranks()
        self._driver.copy_out(to.ctypes.data, source.pointer, to.nbytes, self._stream)
        self._driver.synchronize(self._stream)

    def synchronize(self) -> None:
        self._wait_for_ranks()
        self._driver.synchronize(self._stream)

    def _wait_for_ranks(self) -> None:
        """Before calls that wait in the driver, which would wait for a lost rank for ever."""
        self._driver.set_context(self._context)
        if self._communicator is not None:
            self._communicator.wait()

    def copy(self, source: DeviceArray, to: DeviceArray) -> None:
        assert source.num_bytes == to.num_bytes
        self._driver.set_context(self._context)
        self._driver.copy_within(to.pointer, source.pointer, to.num_bytes, self._stream)

    def launch(self, kernel: Any, grid: Grid, *, num_warps: int = 4, num_stages: int = 3, **arguments: Any) -> None:
        variant = variant_of(kernel, arguments, num_warps, num_stages)
        function = self._functions.get((id(kernel), variant))
        if function is None:
            function = self._functions[id(kernel), variant] = self._compile(kernel, variant)
        values = [_as_ctypes(arguments[p.name]) for p in kernel.params if not p.is_constexpr]
        scratch = [ctypes.c_uint64(0)] * 2  # memory that these kernels don't ask for
        self._driver.launch(
            function.handle, grid, function.num_threads, function.shared_bytes, self._stream, values + scratch
        )

    def _compile(self, kernel: Any, variant: Variant) -> _Function:
        from triton.backends.compiler import GPUTarget

        compiled = compile_kernel(kernel, variant, GPUTarget("cuda", self._arch, 32))
        about = compiled.metadata
        assert not about.global_scratch_size
        handle = self._driver.load_function(compiled.asm["cubin"], about.name, about.shared)
        return _Function(handle, 32 * about.num_warps, about.shared)

    def record(self, launches: Callable[[], None]) -> Replay:
        """Launches once as usual, so that everything is compiled, and then into a CUDA graph."""
        launches()
        self.synchronize()
        self._driver.begin_capture(self._stream)
        try:
            launches()
        finally:
            graph = self._driver.end_capture(self._stream)
        return lambda: self._driver.launch_graph(graph, self._stream)

    def communicator(self, team: NativeTeam, rank: int, size: int) -> NcclCommunicator:
        if size > self.count:
            raise TargetError(
                f"{size} ranks need a GPU each, and the driver shows {self.count} to this process; lower "
                "tensor_parallel_size, or let $CUDA_VISIBLE_DEVICES name more"
            )
        self._communicator = NcclCommunicator(
            load_nccl(), self._driver, self._context, self._stream, team, rank, size
        )  # fmt: skip
        return self._communicator

    def close(self) -> None:
        """Arrays free themselves, and the compiled kernels serve the next model."""
        self._communicator = None


class _Memory:
    """Freed with the last array that holds it. A context belongs to the thread that made it current, so each entry from
    outside makes it so."""

    def __init__(self, driver: Driver, context: int, num_bytes: int) -> None:
        driver.set_context(context)
        self._driver, self._context, self.address = driver, context, driver.allocate(num_bytes)

    def __del__(self) -> None:
        if hasattr(self, "address"):
            with suppress(QwenchError):  # of a driver that is gone
                self._driver.set_context(self._context)
                self._driver.free(self.address)


def _as_ctypes(value: Any) -> Any:
    if isinstance(value, DeviceArray):
        return ctypes.c_uint64(value.pointer)
    if isinstance(value, float):
        return ctypes.c_float(value)
    return (ctypes.c_int32 if -(2**31) <= value < 2**31 else ctypes.c_int64)(value)


@cache
def open_gpu(ordinal: int = 0) -> Gpu:
    """The one of this process. Raises TargetError without a driver, a GPU that is new enough, or Triton."""
    gpu = Gpu(load_driver(), ordinal)
    if interprets_triton():
        raise TargetError("TRITON_INTERPRET=1 has Triton run on the CPU; unset it, or take --target cuda-interpreter")
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise TargetError(f'the target cuda needs Triton ({error}): pip install "qwench[cuda]"') from None
    return gpu
