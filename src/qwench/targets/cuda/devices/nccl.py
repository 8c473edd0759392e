"""NCCL, called through ctypes: a communicator of ranks with a GPU each, and all-gather on the GPU's stream.

The half dozen functions have been the same since NCCL 2.4. The library is the system's, or that of NVIDIA's wheel. A
collective waits on the GPU for ranks that may never come, so nothing here waits for a GPU without a look at what became
of the others. Knows nothing of arrays' meaning. Used by `gpu.py`.
"""

from __future__ import annotations

import ctypes
import threading
import time
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from qwench.errors import QwenchError, TargetError
from qwench.targets.cuda.devices.device import RANK_LOST, DeviceArray
from qwench.targets.cuda.devices.driver import Driver

LIBRARY = "libnccl.so.2"
OLDEST = 20900  # 2.9, the first that CUDA graphs record
_SUCCESS, _IN_PROGRESS = 0, 7  # ncclResult_t
_UINT8 = 1  # ncclDataType_t
_SPINS, _NAP_S, _LOOK_EVERY = 2000, 5e-5, 64  # of those who wait for a GPU: a step of few tokens takes no nap


class _UniqueId(ctypes.Structure):
    _fields_ = [("internal", ctypes.c_char * 128)]


class Team(Protocol):
    """What is known of the other ranks."""

    def lost_rank(self) -> int: ...


class Nccl:
    """Methods are named after the functions they call. Communicators are ints."""

    def __init__(self, library: Any) -> None:
        """library: libnccl, or what stands in for it in tests. Raises TargetError when it is too old."""
        self._library = library
        library.ncclGetErrorString.restype = c_char_p
        version = c_int()
        self._call("ncclGetVersion", byref(version))
        if version.value < OLDEST:
            raise TargetError(f"NCCL here has version code {version.value}; 2.9 or newer is needed: {_INSTALL}")

    def _call(self, name: str, *arguments: Any) -> None:
        self.check(int(getattr(self._library, name)(*arguments)), name)

    def check(self, result: int, name: str) -> None:
        """Raises TargetError for a result that is none."""
        if result != _SUCCESS:
            text = (self._library.ncclGetErrorString(c_int(result)) or b"").decode() or f"error {result}"
            raise TargetError(f"NCCL, by which GPUs exchange data, failed: {text}, in {name}; load the model again")

    def unique_id(self) -> bytes:
        """By which ranks find each other."""
        unique_id = _UniqueId()
        self._call("ncclGetUniqueId", byref(unique_id))
        return bytes(unique_id)

    def init_rank(self, size: int, unique_id: bytes, rank: int) -> int:
        """A communicator of the current context. Waits for all ranks."""
        communicator = c_void_p()
        self._call(
            "ncclCommInitRank", byref(communicator), c_int(size), _UniqueId.from_buffer_copy(unique_id), c_int(rank)
        )
        return communicator.value or 0

    def all_gather(self, source: int, to: int, num_bytes: int, communicator: int, stream: int) -> None:
        """num_bytes: of each rank."""
        self._call(
            "ncclAllGather", c_void_p(source), c_void_p(to), c_size_t(num_bytes), c_int(_UINT8),
            c_void_p(communicator), c_void_p(stream),
        )  # fmt: skip

    def async_error(self, communicator: int) -> None:
        """Raises TargetError once the GPU, or another rank, has failed."""
        result = c_int()
        self._call("ncclCommGetAsyncError", c_void_p(communicator), byref(result))
        if result.value != _IN_PROGRESS:
            self.check(result.value, "a collective")

    def abort(self, communicator: int) -> None:
        """Ends what is running on the GPU, too."""
        self._call("ncclCommAbort", c_void_p(communicator))


class NcclCommunicator:
    """A rank with its GPU. context, stream: of that. team: says when a rank was lost."""

    def __init__(self, nccl: Nccl, driver: Driver, context: int, stream: int, team: Team, rank: int, size: int) -> None:
        self._nccl, self._driver, self._context, self._stream = nccl, driver, context, stream
        self._team, self.rank, self.size = team, rank, size
        self._handle = 0

    def invitation(self) -> bytes:
        return self._nccl.unique_id()

    def join(self, invitation: bytes) -> None:
        """In a thread of its own, since NCCL waits for ranks that have died, too."""
        failures: list[QwenchError] = []

        def connect() -> None:
            try:
                self._driver.set_context(self._context)
                self._handle = self._nccl.init_rank(self.size, invitation, self.rank)
            except QwenchError as error:
                failures.append(error)

        thread = threading.Thread(target=connect, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.05)
            if self._team.lost_rank() >= 0:
                raise TargetError(RANK_LOST)
        if failures:
            raise failures[0]

    def all_gather(self, source: DeviceArray, to: DeviceArray) -> None:
        assert self._handle, "join comes first"
        try:
            self._nccl.all_gather(source.pointer, to.pointer, source.num_bytes, self._handle, self._stream)
        except TargetError:
            self.close()
            raise

    def wait(self) -> None:
        """For the end of what was asked of the GPU. Raises TargetError once a rank was lost, or NCCL has failed, and
        nothing runs any more then."""
        turn = 0
        while not self._driver.is_done(self._stream):
            turn += 1
            if turn % _LOOK_EVERY == 0:
                self._look()
            if turn > _SPINS:
                time.sleep(_NAP_S)

    def _look(self) -> None:
        try:
            if self._team.lost_rank() >= 0:
                raise TargetError(RANK_LOST)
            if self._handle:
                self._nccl.async_error(self._handle)
        except TargetError:
            self.close()
            raise

    def close(self) -> None:
        """Not by ncclCommDestroy, which waits for others and for recorded graphs."""
        handle, self._handle = self._handle, 0
        if handle:
            self._nccl.abort(handle)


_INSTALL = "pip install nvidia-nccl-cu12, or -cu13 for a driver of CUDA 13"


def load_nccl() -> Nccl:
    """Raises TargetError where there is no NCCL."""
    for path in (LIBRARY, *_of_wheels()):
        try:
            return Nccl(ctypes.CDLL(path))
        except OSError:
            continue
    raise TargetError(
        f"several GPUs need NCCL, and {LIBRARY} can't be loaded: {_INSTALL}; or leave tensor_parallel_size out"
    )


def _of_wheels() -> list[str]:
    spec = find_spec("nvidia")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    return [str(path) for folder in folders if (path := Path(folder, "nccl", "lib", LIBRARY)).exists()]
