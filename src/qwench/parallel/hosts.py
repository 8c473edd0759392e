"""Hosts: what `mpiexec` started beside this process, as host 0 sees them. `host_process.py` is the other side."""

from __future__ import annotations

import atexit
import functools
from dataclasses import dataclass
from typing import Any

from qwench.errors import TargetError
from qwench.host import mpi_place
from qwench.parallel.layout import Layout
from qwench.parallel.mpi import Mpi
from qwench.targets.target import Link

DESCRIBE, LOAD, END = "describe", "load", "end"  # requests
_LOAD_S, _ANSWER_S = 600.0, 30.0  # how long a host may take: one reads its weights


@dataclass(frozen=True)
class Description:
    name: str
    version: str
    num_cpus: int
    available_bytes: int


@functools.cache
def join_hosts() -> Hosts | None:
    """The hosts that this process computes with, as the first of them; None if it was started alone. Waits for the
    others to be there. Raises TargetError."""
    return Hosts() if mpi_place()[1] > 1 else None


class Hosts:
    """size: number of hosts, this one included. lost: which of them doesn't answer; None while all do."""

    def __init__(self) -> None:
        self.lost: str | None = None
        self.descriptions: list[Description] = []
        self._mpi = Mpi()
        self.size = self._mpi.size
        atexit.register(self._end)  # before MPI's own, which waits for the others
        self.descriptions = self._ask_all(DESCRIBE, None, _ANSWER_S)
        if len(versions := {each.version for each in self.descriptions}) > 1:
            raise TargetError(f"hosts have different versions of qwench: {', '.join(sorted(versions))}; install one")

    @property
    def link(self) -> Link:
        return self._mpi.link()

    def num_cpus(self) -> list[int]:
        return [each.num_cpus for each in self.descriptions]

    def least_available_bytes(self) -> int:
        """On the host that has the least."""
        return min(each.available_bytes for each in self.descriptions)

    def name(self, host: int) -> str:
        return f"host {host} ({self.descriptions[host].name})" if self.descriptions else f"host {host}"

    def load(self, layout: Layout) -> None:
        """Has all others open the artifact. Raises TargetError for one that can't."""
        self._ask_all(LOAD, layout, _LOAD_S, include_own=False)

    def results(self) -> list[list[bytes]]:
        """Of the call that all ranks were told to make: of each other host what its ranks gave. Raises TargetError for
        one that failed."""
        return self._replies(_ANSWER_S)

    def _ask_all(self, request: str, argument: Any, timeout_s: float, include_own: bool = True) -> list[Any]:
        for host in range(1, self.size):
            self._mpi.ask(host, (request, argument))
        own = [describe()] if include_own else []
        return own + self._replies(timeout_s)

    def _replies(self, timeout_s: float) -> list[Any]:
        replies = [self._reply(host, timeout_s) for host in range(1, self.size)]
        for host, (error, _) in enumerate(replies, 1):
            if error:
                raise TargetError(f"host {host}: {error}")
        return [value for _, value in replies]

    def _reply(self, host: int, timeout_s: float) -> Any:
        try:
            return self._mpi.reply_of(host, timeout_s)
        except TimeoutError as error:
            self.lost = f"{self.name(host)} {error}"
            raise TargetError(self.lost) from None

    def _end(self) -> None:
        for host in range(1, self.size):
            self._mpi.ask(host, (END, None))


def describe() -> Description:
    import platform

    from qwench import __version__
    from qwench.host import available_memory_bytes, num_cpus

    return Description(platform.node(), __version__, num_cpus(), available_memory_bytes())
