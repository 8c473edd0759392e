"""A compiled model -> an executor of several ranks, here and perhaps on other hosts. Called by `runtime/loading.py`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from qwench.checkpoint.spec import ModelSpec
from qwench.config import QwenchConfig
from qwench.host import num_cpus
from qwench.parallel.cpu_team_executor import CpuTeamExecutor
from qwench.parallel.hosts import Hosts
from qwench.parallel.layout import Layout, identity_of
from qwench.parallel.ranks import Ranks
from qwench.parallel.team_executor import TeamExecutor
from qwench.program.memory import MemoryPlan
from qwench.program.ops import Program
from qwench.program.shard import Shares
from qwench.targets.cpu.executor import CpuExecutor
from qwench.targets.target import CacheConfig


def load_team(
    path: Path, program: Program, plan: MemoryPlan, tensors: Any, config: QwenchConfig, cache: CacheConfig,
    num_threads: int | None, hosts: Hosts | None,
) -> TeamExecutor:  # fmt: skip
    """Rank 0 of `config.tensor_parallel_size`, with the others running. path: of the artifact, which they open.

    num_threads: of all ranks together, at least one each; None: what each host has. hosts: those that `mpiexec` has
    started, if they are several. Raises ConfigError, CapacityError, TargetError.
    """
    assert config.target
    shares = shares_of(config, program.spec, hosts)
    size = len(shares.parts)
    threads = share_threads(shares, num_threads, [num_cpus()] if hosts is None else hosts.num_cpus())
    layout = Layout(
        str(path.resolve()), identity_of(path), config.target, shares.parts, shares.hosts, threads,
        dataclasses.asdict(cache),
    )  # fmt: skip
    ranks = start_ranks(layout, 0, program, plan)
    try:
        if hosts is not None:
            hosts.load(layout)
        link = None if hosts is None else hosts.link
        own = layout.load(0, program, plan, tensors, ranks.memory, link)
        shared, others = layout.memory_of(0, program, plan), [layout.parts_of(program, n) for n in range(1, size)]
        if isinstance(own, CpuExecutor):
            return CpuTeamExecutor(own, ranks, shared, others, hosts)
        return TeamExecutor(own, ranks, shared, others)
    except BaseException:
        ranks.close()
        raise


def shares_of(config: QwenchConfig, spec: ModelSpec, hosts: Hosts | None) -> Shares:
    """Raises ConfigError for what the model, or the hosts, can't be split into."""
    num_hosts = 1 if hosts is None else hosts.size
    return Shares.parse(config.tensor_parallel_size or num_hosts, config.shares, spec, num_hosts)


def start_ranks(layout: Layout, host: int, program: Program, plan: MemoryPlan) -> Ranks:
    """Processes of a host's ranks but the first."""
    own = layout.ranks_of(host)
    common = dataclasses.asdict(layout)
    cores = _cores([layout.threads[rank] for rank in own])
    options = [{"layout": common, "rank": rank, "cores": cores[rank - own[0]]} for rank in own[1:]]
    return Ranks(layout.memory_of(host, program, plan).num_bytes, options, own[0] + 1)


def share_threads(shares: Shares, num_threads: int | None, cpus: list[int]) -> tuple[int, ...]:
    """Threads of each rank, at least one: of `num_threads` as the work is, or of what its host has, `cpus`."""
    size = len(shares.parts)
    if num_threads is not None:
        spans = [shares.span(num_threads, rank) for rank in range(size)]
        return tuple(max(last - first, 1) for first, last in spans)
    threads: list[int] = []
    for host, count in enumerate(cpus):
        ranks = shares.ranks(host)
        parts = shares.parts[ranks[0] : ranks[-1] + 1]
        ends = np.round(np.cumsum([0, *parts]) * (count / sum(parts))).astype(int)
        threads += [max(int(n), 1) for n in np.diff(ends)]
    return tuple(threads)


def _cores(threads: list[int]) -> list[list[int]]:
    """The processors of each rank, neighbours together; none where there are too few for all threads."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if sum(threads) > len(allowed):
        return [[] for _ in threads]
    ends = np.cumsum(threads).tolist()
    return [allowed[end - count : end] for count, end in zip(threads, ends, strict=True)]
