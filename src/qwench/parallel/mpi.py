"""MPI, by which hosts talk: Python objects between their first processes, and for native code its C interface.

`mpiexec` or `srun` has started this process; which one it is, `host.mpi_place` says without MPI. The library is the one
that mpi4py finds: of the package index, or the cluster's own.
"""

from __future__ import annotations

import ctypes
import importlib
import time
from pathlib import Path
from typing import Any

from qwench.errors import TargetError
from qwench.targets.target import Link

_REQUEST, _REPLY = 3, 4  # tags of messages; native/ranks/link.cpp has others
_NAP_S = 0.01


class Mpi:
    """Connects, which waits for all other processes. Raises TargetError without MPI."""

    def __init__(self) -> None:
        try:
            self._module: Any = importlib.import_module("mpi4py.MPI")
        except (ImportError, RuntimeError, OSError) as error:
            raise TargetError(
                f"mpiexec started several processes, and this one finds no MPI ({error}); pip install 'qwench[mpi]', "
                "or mpi4py beside the cluster's own MPI"
            ) from None
        self._comm = self._module.COMM_WORLD.Dup()
        self.place, self.size = int(self._comm.Get_rank()), int(self._comm.Get_size())

    def link(self) -> Link:
        """What native code needs to send by itself."""
        library = ctypes.CDLL(_loaded_library())

        def address(name: str) -> int:
            return ctypes.cast(library[name], ctypes.c_void_p).value or 0

        handles = self._module._handleof(self._comm), self._module._handleof(self._module.BYTE)
        functions = address("MPI_Isend"), address("MPI_Irecv"), address("MPI_Test")
        return Link((*functions, *handles), self.place, self.size)

    def ask(self, place: int, request: Any) -> None:
        self._comm.send(request, dest=place, tag=_REQUEST)

    def next_request(self) -> Any:
        """Of host 0; waits without burning a processor, as MPI itself would."""
        return self._receive(0, _REQUEST, None)

    def reply(self, value: Any) -> None:
        """To host 0."""
        self._comm.send(value, dest=0, tag=_REPLY)

    def reply_of(self, place: int, timeout_s: float) -> Any:
        """Raises TimeoutError when there is none in time."""
        return self._receive(place, _REPLY, timeout_s)

    def _receive(self, place: int, tag: int, timeout_s: float | None) -> Any:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._comm.iprobe(source=place, tag=tag):
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"has not answered for {timeout_s:g} s")
            time.sleep(_NAP_S)
        return self._comm.recv(source=place, tag=tag)


def _loaded_library() -> str:
    """The file of the MPI library that this process has loaded."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith(("libmpi.so", "libmpich.so", "libmpi_abi.so")):
            return path
    raise TargetError("this process has loaded no MPI library that is known: libmpi, libmpich or libmpi_abi")
