"""The process of a rank other than a host's first: opens the artifact, then computes what rank 0 has it compute.

Started by `ranks.py`. Its standard input is a line to the first rank that breaks when that one ends; its standard
output says why it couldn't go on.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import threading
from typing import Any

import numpy as np

from qwench.artifact.artifact import open_artifact
from qwench.errors import QwenchError
from qwench.parallel import messages
from qwench.parallel.block_parts import BlockParts
from qwench.parallel.layout import Layout
from qwench.parallel.team_memory import TeamMemory
from qwench.targets.cpu.executor import CpuExecutor
from qwench.targets.target import Bytes, JoiningExecutor, RankExecutor, StepBatch


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides
    threading.Thread(target=_end_with_the_first_rank, daemon=True).start()
    options = json.loads(sys.argv[1])
    if options["cores"]:
        os.sched_setaffinity(0, options["cores"])
    try:
        process = _open(options)
        process.answer("", None)  # ready
        return 0 if process.run() else 1
    except (QwenchError, OSError, MemoryError) as error:
        print(error or type(error).__name__, flush=True)
        return 2


def _end_with_the_first_rank() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _open(options: dict[str, Any]) -> RankProcess:
    memory = np.frombuffer(mmap.mmap(options["descriptor"], options["num_bytes"]), np.uint8)
    layout, rank = Layout(**options["layout"]), options["rank"]
    artifact = open_artifact(layout.artifact, verify="rank")
    executor = layout.load(rank, artifact.program, artifact.plan, artifact.tensors, memory)
    host = layout.host_of(rank)
    shared = layout.memory_of(host, artifact.program, artifact.plan)
    return RankProcess(executor, rank - layout.ranks_of(host)[0], shared, memory)


class RankProcess:
    """Serves until rank 0 closes, or a rank is lost. rank: among those of its host, which share `memory`."""

    def __init__(self, executor: RankExecutor, rank: int, shared: TeamMemory, memory: Bytes) -> None:
        self._executor, self._rank, self._channel = executor, rank, executor.channel
        self._shared, self._memory = shared, memory
        self._parts = BlockParts.of(executor.program)

    def run(self) -> int:
        """CLOSE, or 0 once a rank or a host was lost. Raises what is wrong with a step, for which the others wait in
        vain then."""
        while (kind := self._channel.serve()) not in (0, messages.CLOSE):
            error, result = "", None
            method, arguments = messages.read(self._channel.mail())
            try:
                result = getattr(self, method)(*arguments)
            except (QwenchError, MemoryError) as refusal:
                if kind == messages.STEP:
                    raise
                error = str(refusal) or type(refusal).__name__
            self.answer(error, result)
        return kind

    def answer(self, error: str, result: Bytes | None) -> None:
        if result is not None:
            self._shared.result(self._memory, self._rank, len(result))[:] = result
        self._channel.acknowledge(error)

    def join(self, invitation: bytes) -> None:
        assert isinstance(self._executor, JoiningExecutor)
        self._executor.join(invitation)

    def step(self, batch: StepBatch) -> None:
        """Of a target whose native code doesn't take steps by itself; rank 0 has the results."""
        self._executor.step(batch)

    def grow_rope_table(self, positions: int) -> None:
        assert isinstance(self._executor, CpuExecutor)
        self._executor.grow_rope_table(positions)

    def set_adapter(self, *arguments: Any) -> None:
        self._executor.set_adapter(*arguments)

    def copy_blocks(self, *arguments: Any) -> None:
        self._executor.copy_blocks(*arguments)

    def read_block(self, block: int) -> Bytes:
        return self._executor.read_block(block)

    def write_block(self, block: int, whole: Any) -> None:
        self._executor.write_block(block, self._parts.take(whole))


if __name__ == "__main__":
    os._exit(main())  # the thread that reads the standard input blocks for ever
