"""The device of `cuda-interpreter`: the CPU, where Triton's interpreter runs kernels one program after another in
NumPy.

For tests: thousands of times as slow as a GPU, and the same kernels to the line. Triton decides whether a kernel is
interpreted when its module is imported, so `make_interpreter` comes before that.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from qwench.errors import TargetError
from qwench.host import available_memory_bytes, interpret_triton, interprets_triton
from qwench.targets.cpu._native import Team as NativeTeam
from qwench.targets.cuda.devices.device import NUMPY_DTYPES, DeviceArray, Grid, HostArray, Replay
from qwench.targets.cuda.devices.window_communicator import WindowCommunicator

_TORCH_NAMES = {
    "fp32": "float32", "bf16": "bfloat16", "i64": "int64", "i32": "int32", "i8": "int8", "u8": "uint8",
}  # fmt: skip


class _Pointer:
    """A DeviceArray as the interpreter takes tensors: by address and the name of a dtype."""

    def __init__(self, array: DeviceArray) -> None:
        self.dtype, self._pointer = _TORCH_NAMES[array.dtype], array.pointer

    def data_ptr(self) -> int:
        return self._pointer


class Interpreter:
    """Device memory is NumPy's."""

    name = "Triton's interpreter"
    shared_bytes = 227 << 10  # as an H100 has

    @property
    def free_bytes(self) -> int:
        return available_memory_bytes()

    def zeros(self, dtype: str, *shape: int) -> DeviceArray:
        memory = np.zeros(shape, NUMPY_DTYPES[dtype])
        return DeviceArray(memory.ctypes.data, dtype, shape, memory)

    def upload(self, values: HostArray, to: DeviceArray) -> None:
        assert values.nbytes <= to.num_bytes
        _bytes(to.pointer, values.nbytes)[:] = values.reshape(-1).view(np.uint8)

    def download(self, source: DeviceArray, to: HostArray) -> None:
        assert to.nbytes <= source.num_bytes
        to.reshape(-1).view(np.uint8)[:] = _bytes(source.pointer, to.nbytes)

    def copy(self, source: DeviceArray, to: DeviceArray) -> None:
        assert source.num_bytes == to.num_bytes
        _bytes(to.pointer, to.num_bytes)[:] = _bytes(source.pointer, source.num_bytes)

    def launch(self, kernel: Any, grid: Grid, *, num_warps: int = 4, num_stages: int = 3, **arguments: Any) -> None:
        from triton.runtime.interpreter import GridExecutor

        class HostGrid(GridExecutor):  # type: ignore[misc]
            """Takes arguments as they are, where Triton's own expects torch's tensors and copies them."""

            def _init_args_hst(self, args: Any, kwargs: Any) -> Any:
                return args, kwargs

            def _restore_args_dev(self, *_: Any) -> None:
                pass

        given = {k: _Pointer(v) if isinstance(v, DeviceArray) else v for k, v in arguments.items()}
        with np.errstate(all="ignore"):
            HostGrid(kernel.rewrite(), kernel.arg_names, grid)(**given)

    def record(self, launches: Callable[[], None]) -> Replay:
        return launches

    def synchronize(self) -> None:
        pass

    def communicator(self, team: NativeTeam, rank: int, size: int) -> WindowCommunicator:
        return WindowCommunicator(self, team, rank, size)

    def close(self) -> None:
        pass


def make_interpreter() -> Interpreter:
    """Raises TargetError without Triton, and where Triton was imported for a GPU already."""
    if "triton" in sys.modules and not interprets_triton():
        raise TargetError("this process uses Triton for a GPU already; start cuda-interpreter with TRITON_INTERPRET=1")
    interpret_triton()
    try:
        from qwench.targets.cuda.devices.interpreter_repairs import repair_interpreter

        repair_interpreter()
    except ImportError as error:
        raise TargetError(f'the target cuda-interpreter needs Triton ({error}): pip install "qwench[cuda]"') from None
    return Interpreter()


def _bytes(pointer: int, count: int) -> Any:
    return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(pointer))
