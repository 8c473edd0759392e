"""The process of a rank other than 0: opens the artifact, then computes what rank 0 has it compute.

Started by `ranks.py`. Its standard input is a line to rank 0 that breaks when rank 0 ends; its standard output says why
it couldn't go on.
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

from qwench.artifact import open_artifact
from qwench.errors import QwenchError
from qwench.parallel import messages
from qwench.parallel.block_parts import BlockParts
from qwench.program.shard import Shares, shard
from qwench.targets.cpu.executor import CpuExecutor
from qwench.targets.registry import get_target
from qwench.targets.target import CacheConfig, Team


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides
    threading.Thread(target=_end_with_rank_0, daemon=True).start()
    options = json.loads(sys.argv[1])
    if options["cores"]:
        os.sched_setaffinity(0, options["cores"])
    try:
        executor = _open(options)
    except (QwenchError, OSError, MemoryError) as error:
        print(error or type(error).__name__, flush=True)
        return 2
    return RankProcess(executor, options["rank"]).run()


def _end_with_rank_0() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _open(options: dict[str, Any]) -> CpuExecutor:
    memory = np.frombuffer(mmap.mmap(options["descriptor"], options["num_bytes"]), np.uint8)
    artifact = open_artifact(options["artifact"], verify="rank")
    program = shard(artifact.program, Shares(tuple(options["shares"])), options["rank"])
    team = Team(memory, options["rank"], tuple(options["threads"]))
    executor = get_target(options["target"]).load(
        program,
        artifact.plan,
        artifact.tensors,
        CacheConfig(**options["cache"]),
        options["threads"][options["rank"]],
        team,
    )
    assert isinstance(executor, CpuExecutor)
    return executor


class RankProcess:
    """Serves until rank 0 closes, or is lost."""

    def __init__(self, executor: CpuExecutor, rank: int) -> None:
        self._executor, self._rank, self._native = executor, rank, executor.native
        self._parts = BlockParts.of(executor.program)

    def run(self) -> int:
        self._native.acknowledge("")  # ready
        while (kind := self._native.serve()) == messages.CALL:
            error = ""
            try:
                method, arguments = messages.read(self._native.mail())
                getattr(self, method)(*arguments)
            except (QwenchError, MemoryError) as refusal:
                error = str(refusal) or type(refusal).__name__
            self._native.acknowledge(error)
        return 0 if kind == messages.CLOSE else 1

    def grow_rope_table(self, positions: int) -> None:
        self._executor.grow_rope_table(positions)

    def set_adapter(self, *arguments: Any) -> None:
        self._executor.set_adapter(*arguments)

    def copy_blocks(self, *arguments: Any) -> None:
        self._executor.copy_blocks(*arguments)

    def read_block(self, block: int) -> None:
        part = self._executor.read_block(block)
        messages.result(self._native.mail(), self._rank, len(part))[:] = part

    def write_block(self, block: int, whole: Any) -> None:
        self._executor.write_block(block, self._parts.take(whole))


if __name__ == "__main__":
    os._exit(main())  # the thread that reads the standard input blocks for ever
