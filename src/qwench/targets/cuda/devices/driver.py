"""NVIDIA's driver, called through ctypes: the two dozen functions of libcuda that the target needs.

These have kept their meaning for ten years, so that there is nothing to install and no version to match; kernels come
from Triton as machine code. Every call checks its result. Knows nothing of arrays. Called by `gpu.py`.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p, create_string_buffer
from typing import Any

from qwench.errors import CapacityError, TargetError

LIBRARY = "libcuda.so.1"
_OUT_OF_MEMORY, _NO_DEVICE, _NOT_READY = 2, 100, 600
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR, _SHARED_BYTES = 75, 76, 97  # CUdevice_attribute
_MAX_DYNAMIC_SHARED_BYTES = 8  # CUfunction_attribute
_NON_BLOCKING, _CAPTURE_THREAD_LOCAL = 1, 1  # CUstream_flags, CUstreamCaptureMode


class Driver:
    """Methods are named after the functions they call. Handles and addresses are ints."""

    def __init__(self, library: Any) -> None:
        """library: libcuda, or what stands in for it in tests. Raises TargetError when it can't be used."""
        self._library = library
        self._call("cuInit", 0)

    def _call(self, name: str, *arguments: Any) -> None:
        """Raises CapacityError when memory is short, TargetError for all else."""
        self._check(int(getattr(self._library, name)(*arguments)), name)

    def _check(self, result: int, name: str) -> None:
        if result == _OUT_OF_MEMORY:
            raise CapacityError(
                "the GPU has too little memory for the model; lower kvcache_num_blocks, max_seq_len or batch_size, or "
                "compile to a smaller weight format"
            )
        if result == _NO_DEVICE:
            raise TargetError("there is a driver and no GPU that it shows to this process; take --target cpu")
        if result:
            raise TargetError(
                f"the GPU or its driver failed: {self._name_of(result)} in {name}; see `nvidia-smi`, start again, or "
                "take --target cpu"
            )

    def _name_of(self, result: int) -> str:
        text = c_char_p()
        self._library.cuGetErrorName(result, byref(text))
        return (text.value or b"").decode() or f"error {result}"

    def _handle(self, name: str, *arguments: Any) -> int:
        """Of a function whose first argument is where its result goes."""
        result = c_void_p()
        self._call(name, byref(result), *arguments)
        return result.value or 0

    def _number(self, name: str, *arguments: Any) -> int:
        result = c_int()
        self._call(name, byref(result), *arguments)
        return result.value

    def count(self) -> int:
        return self._number("cuDeviceGetCount")

    def device(self, ordinal: int) -> int:
        return self._number("cuDeviceGet", c_int(ordinal))

    def device_name(self, device: int) -> str:
        text = create_string_buffer(256)
        self._call("cuDeviceGetName", text, 256, c_int(device))
        return text.value.decode()

    def capability(self, device: int) -> tuple[int, int]:
        """Such as (9, 0)."""
        return (
            self._number("cuDeviceGetAttribute", _COMPUTE_CAPABILITY_MAJOR, c_int(device)),
            self._number("cuDeviceGetAttribute", _COMPUTE_CAPABILITY_MINOR, c_int(device)),
        )

    def shared_bytes(self, device: int) -> int:
        """The most that a program may have."""
        return self._number("cuDeviceGetAttribute", _SHARED_BYTES, c_int(device))

    def retain_context(self, device: int) -> int:
        """The context that all libraries of a process share."""
        return self._handle("cuDevicePrimaryCtxRetain", c_int(device))

    def release_context(self, device: int) -> None:
        self._call("cuDevicePrimaryCtxRelease_v2", c_int(device))

    def set_context(self, context: int) -> None:
        self._call("cuCtxSetCurrent", c_void_p(context))

    def memory_info(self) -> tuple[int, int]:
        """Free and all bytes."""
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def allocate(self, num_bytes: int) -> int:
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), c_size_t(num_bytes))
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", c_uint64(address))

    def allocate_pinned(self, num_bytes: int) -> int:
        """Memory of the host that copies reach without a detour."""
        return self._handle("cuMemAllocHost_v2", c_size_t(num_bytes))

    def free_pinned(self, address: int) -> None:
        self._call("cuMemFreeHost", c_void_p(address))

    def clear(self, address: int, num_bytes: int, stream: int) -> None:
        self._call("cuMemsetD8Async", c_uint64(address), ctypes.c_ubyte(0), c_size_t(num_bytes), c_void_p(stream))

    def copy_in(self, address: int, host: int, num_bytes: int, stream: int) -> None:
        self._call("cuMemcpyHtoDAsync_v2", c_uint64(address), c_void_p(host), c_size_t(num_bytes), c_void_p(stream))

    def copy_out(self, host: int, address: int, num_bytes: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync_v2", c_void_p(host), c_uint64(address), c_size_t(num_bytes), c_void_p(stream))

    def copy_within(self, to: int, source: int, num_bytes: int, stream: int) -> None:
        self._call("cuMemcpyDtoDAsync_v2", c_uint64(to), c_uint64(source), c_size_t(num_bytes), c_void_p(stream))

    def new_stream(self) -> int:
        return self._handle("cuStreamCreate", _NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", c_void_p(stream))

    def is_done(self, stream: int) -> bool:
        """Whether nothing runs on it, or waits to."""
        result = int(self._library.cuStreamQuery(c_void_p(stream)))
        if result != _NOT_READY:
            self._check(result, "cuStreamQuery")
        return result != _NOT_READY

    def load_function(self, machine_code: bytes, name: str, shared_bytes: int) -> int:
        """A kernel, which may use so much shared memory."""
        module = self._handle("cuModuleLoadData", c_char_p(machine_code))
        function = self._handle("cuModuleGetFunction", c_void_p(module), c_char_p(name.encode()))
        self._call("cuFuncSetAttribute", c_void_p(function), _MAX_DYNAMIC_SHARED_BYTES, c_int(shared_bytes))
        return function

    def launch(
        self, function: int, grid: tuple[int, int, int], num_threads: int, shared_bytes: int, stream: int,
        arguments: list[Any],
    ) -> None:  # fmt: skip
        """arguments: ctypes values, in the order of the kernel's."""
        places = (c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        self._call(
            "cuLaunchKernel", c_void_p(function), *grid, num_threads, 1, 1, shared_bytes, c_void_p(stream), places, None
        )

    def begin_capture(self, stream: int) -> None:
        """From now on launches are recorded, not made."""
        self._call("cuStreamBeginCapture_v2", c_void_p(stream), _CAPTURE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """The recorded launches, ready to be made."""
        graph = c_void_p()
        self._call("cuStreamEndCapture", c_void_p(stream), byref(graph))
        try:
            return self._handle("cuGraphInstantiateWithFlags", graph, c_uint64(0))
        finally:
            self._call("cuGraphDestroy", graph)

    def launch_graph(self, graph: int, stream: int) -> None:
        self._call("cuGraphLaunch", c_void_p(graph), c_void_p(stream))

    def free_graph(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", c_void_p(graph))


def load_driver() -> Driver:
    """Raises TargetError where there is no driver."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise TargetError(
            f"there is no NVIDIA driver here ({LIBRARY} can't be loaded), and so no GPU for --target cuda; install the "
            "driver, or take --target cpu"
        ) from None
    return Driver(library)
