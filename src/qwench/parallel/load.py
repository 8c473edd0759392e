"""A compiled model -> an executor of several ranks on this machine. Called by `runtime/loading.py`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from qwench.config import QwenchConfig
from qwench.errors import TargetError
from qwench.parallel.block_parts import BlockParts
from qwench.parallel.ranks import Ranks
from qwench.parallel.team_executor import TeamExecutor
from qwench.program.memory import MemoryPlan
from qwench.program.ops import Program
from qwench.program.shard import Shares, shard
from qwench.targets.cpu.executor import CpuExecutor
from qwench.targets.registry import get_target
from qwench.targets.target import CacheConfig, Team

ROOM_BYTES = 16 << 30  # address space beside activations and logits: the mailbox


def load_team(
    path: Path, program: Program, plan: MemoryPlan, tensors: Any, config: QwenchConfig, cache: CacheConfig,
    num_threads: int,
) -> TeamExecutor:  # fmt: skip
    """Rank 0 of `config.tensor_parallel_size`, with the others running. path: of the artifact, which they open.

    num_threads: of all ranks together, at least one each. Raises ConfigError, CapacityError, TargetError.
    """
    assert config.tensor_parallel_size and config.target
    size = config.tensor_parallel_size
    shares = Shares.parse(size, config.shares, program.spec)
    threads = _threads(shares, size, num_threads)
    common = {
        "artifact": str(path), "target": config.target, "shares": shares.parts, "threads": threads,
        "cache": dataclasses.asdict(cache),
    }  # fmt: skip
    cores = _cores(threads)
    ranks = Ranks(
        _memory_bytes(program, plan), [{**common, "rank": rank, "cores": cores[rank]} for rank in range(1, size)]
    )
    try:
        own = get_target(config.target).load(
            shard(program, shares, 0), plan, tensors, cache, threads[0], Team(ranks.memory, 0, tuple(threads))
        )
        if not isinstance(own, CpuExecutor):
            raise TargetError(f"target {config.target!r} computes in one process; leave tensor_parallel_size out")
        return TeamExecutor(own, ranks, [BlockParts.of(shard(program, shares, rank)) for rank in range(1, size)])
    except BaseException:
        ranks.close()
        raise


def _threads(shares: Shares, size: int, num_threads: int) -> list[int]:
    spans = [shares.range(num_threads, rank) for rank in range(size)]
    return [max(last - first, 1) for first, last in spans]


def _cores(threads: list[int]) -> list[list[int]]:
    """The processors of each rank, neighbours together; none where there are too few for all threads."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if sum(threads) > len(allowed):
        return [[] for _ in threads]
    ends = np.cumsum(threads).tolist()
    return [allowed[end - count : end] for count, end in zip(threads, ends, strict=True)]


def _memory_bytes(program: Program, plan: MemoryPlan) -> int:
    """Of what ranks share, most of which is never written and takes no memory."""
    logits = plan.max_step_tokens * program.spec.vocab_size * 4
    return plan.num_bytes + 2 * logits + ROOM_BYTES
