"""The processes that `mpiexec` started beside the first: each serves as a host of ranks until that one ends.

Whatever command or script they were started with, they compute what host 0 has them compute, and then exit.
"""

from __future__ import annotations

import logging
import sys
from typing import NoReturn

from qwench.artifact.artifact import open_artifact
from qwench.errors import QwenchError, TargetError
from qwench.parallel.hosts import DESCRIBE, END, describe
from qwench.parallel.layout import Layout, identity_of
from qwench.parallel.load import start_ranks
from qwench.parallel.mpi import Mpi
from qwench.parallel.rank_process import RankProcess
from qwench.targets.cpu.executor import CpuExecutor
from qwench.targets.target import Bytes

logger = logging.getLogger(__name__)


def serve_as_host() -> NoReturn:
    """Exits with host 0, or with status 1 once a rank or host was lost. Raises TargetError without MPI."""
    mpi = Mpi()
    while (request := mpi.next_request())[0] != END:
        if request[0] == DESCRIBE:
            mpi.reply(("", describe()))
            continue
        _serve(mpi, request[1])
    sys.exit(0)


def _serve(mpi: Mpi, layout: Layout) -> None:
    try:
        host = HostProcess(mpi, layout)
    except (QwenchError, OSError, MemoryError) as error:
        mpi.reply((str(error) or type(error).__name__, None))
        return
    mpi.reply(("", None))
    host.run()


class HostProcess(RankProcess):
    """The first rank of a host, which passes what host 0 says to the others and answers for all of them."""

    def __init__(self, mpi: Mpi, layout: Layout) -> None:
        artifact = open_artifact(layout.artifact)
        if identity_of(artifact.path) != layout.identity:
            raise TargetError(f"{layout.artifact} isn't the model that host 0 has there; copy it")
        ranks = layout.ranks_of(mpi.place)
        self._mpi = mpi
        self._others = start_ranks(layout, mpi.place, artifact.program, artifact.plan)
        try:
            executor = layout.load(
                ranks[0], artifact.program, artifact.plan, artifact.tensors, self._others.memory, mpi.link()
            )
            shared = layout.memory_of(mpi.place, artifact.program, artifact.plan)
            if not isinstance(executor, CpuExecutor):
                raise TargetError(f"target {layout.target!r} computes on one host")
            self._native = executor.native
            super().__init__(executor, 0, shared, self._others.memory)
            self._parts_of_others = [layout.parts_of(artifact.program, rank) for rank in ranks[1:]]
            self._others.watch(executor.native.lose)
            error = self._channel.wait_for_others()
        except RuntimeError:
            error = self._others.reason or "a rank was lost"
        except BaseException:
            self._others.close()
            raise
        if error:
            self._others.close()
            raise TargetError(error)

    def run(self) -> int:
        kind = super().run()
        self._others.close()
        if kind:
            return kind
        lost = self._native.lost_host()
        reason = self._others.reason or (f"host {lost} has not answered" if lost >= 0 else "a rank was lost")
        logger.error("%s: %s", describe().name, reason)
        sys.exit(1)

    def answer(self, error: str, result: Bytes | None) -> None:
        try:
            error = self._channel.wait_for_others() or error
        except RuntimeError:
            error = self._others.reason or "a rank was lost"
        results: list[bytes] = []
        if result is not None and not error:
            whole_bytes = self._parts.whole_bytes(result)
            results = [result.tobytes()]
            for rank, parts in enumerate(self._parts_of_others, 1):
                results.append(self._shared.result(self._memory, rank, parts.part_bytes(whole_bytes)).tobytes())
        self._mpi.reply((error, results))
