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
from qwench.targets.cuda.compilation import Variant, compile_kernel, variant_of
from qwench.targets.cuda.device import NUMPY_DTYPES, DeviceArray, Grid, HostArray, Replay
from qwench.targets.cuda.driver import Driver, load_driver

OLDEST = (8, 0)  # the first with bf16 in its tensor cores: Ampere


@dataclass(frozen=True)
class _Function:
    """A compiled kernel on the GPU."""

    handle: int
    num_threads: int
    shared_bytes: int


class Gpu:
    """The first GPU that the driver shows this process ($CUDA_VISIBLE_DEVICES chooses). Use it in one thread at a
    time."""

    def __init__(self, driver: Driver) -> None:
        """Raises TargetError for a GPU that is too old."""
        self._driver = driver
        if not driver.count():
            raise TargetError("there is a driver and no GPU that it shows to this process; take --target cpu")
        device = driver.device(0)
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
        self._driver.set_context(self._context)
        self._driver.copy_in(to.pointer, values.ctypes.data, values.nbytes, self._stream)
        self._driver.synchronize(self._stream)

    def download(self, source: DeviceArray, to: HostArray) -> None:
        assert to.nbytes <= source.num_bytes
        self._driver.set_context(self._context)
        self._driver.copy_out(to.ctypes.data, source.pointer, to.nbytes, self._stream)
        self._driver.synchronize(self._stream)

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
        self._driver.synchronize(self._stream)
        self._driver.begin_capture(self._stream)
        try:
            launches()
        finally:
            graph = self._driver.end_capture(self._stream)
        return lambda: self._driver.launch_graph(graph, self._stream)

    def close(self) -> None:
        """Arrays free themselves, and the compiled kernels serve the next model."""


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
def open_gpu() -> Gpu:
    """The one of this process. Raises TargetError without a driver, a GPU that is new enough, or Triton."""
    gpu = Gpu(load_driver())
    if interprets_triton():
        raise TargetError("TRITON_INTERPRET=1 has Triton run on the CPU; unset it, or take --target cuda-interpreter")
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise TargetError(f'the target cuda needs Triton ({error}): pip install "qwench[cuda]"') from None
    return gpu
