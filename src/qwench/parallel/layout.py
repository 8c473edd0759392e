"""What all ranks know of each other, and the executor of one of them. Every process of every host makes its own so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwench.artifact.artifact import MANIFEST, PROGRAM, Manifest
from qwench.errors import TargetError
from qwench.parallel.block_parts import BlockParts
from qwench.parallel.memory import release_pages
from qwench.parallel.team_memory import TeamMemory
from qwench.program.memory import MemoryPlan
from qwench.program.ops import Program
from qwench.program.shard import Shares, shard
from qwench.targets.registry import get_target
from qwench.targets.target import Bytes, CacheConfig, Link, RankExecutor, Team


def identity_of(artifact: Path) -> str:
    """Of what an artifact computes, wherever and whenever it was compiled: its Program and its weights."""
    manifest = Manifest.from_json((artifact / MANIFEST).read_bytes())
    weights = json.dumps(manifest.crc32c, sort_keys=True).encode()
    return hashlib.sha256((artifact / PROGRAM).read_bytes() + weights).hexdigest()


@dataclass(frozen=True)
class Layout:
    """artifact: the folder's path. identity: `identity_of` it on host 0. shares, threads: of each rank. hosts: ranks of
    each host. Plain values, as JSON and pickle carry them."""

    artifact: str
    identity: str
    target: str
    shares: tuple[int, ...]
    hosts: tuple[int, ...]
    threads: tuple[int, ...]
    cache: Mapping[str, Any]

    def ranks_of(self, host: int) -> range:
        return self._shares.ranks(host)

    def memory_of(self, host: int, program: Program, plan: MemoryPlan) -> TeamMemory:
        """What the ranks of a host share."""
        return TeamMemory.of(program, plan, CacheConfig(**self.cache), len(self.ranks_of(host)))

    def host_of(self, rank: int) -> int:
        return next(host for host in range(len(self.hosts)) if rank in self.ranks_of(host))

    def parts_of(self, program: Program, rank: int) -> BlockParts:
        """program: the whole one."""
        return BlockParts.of(shard(program, self._shares, rank))

    def load(
        self, rank: int, program: Program, plan: MemoryPlan, tensors: Mapping[str, Any], memory: Bytes,
        link: Link | None = None,
    ) -> RankExecutor:  # fmt: skip
        """memory: that the ranks of this host share. link: the first of them has, if hosts are several. Raises
        CapacityError, TargetError."""
        host = self.host_of(rank)
        ranks, shared = self.ranks_of(host), self.memory_of(host, program, plan)
        threads_of_host = tuple(self.threads[ranks[0] : ranks[-1] + 1])
        team = Team(shared.native(memory), shared.mail_bytes, rank - ranks[0], threads_of_host, host, link)
        program = shard(program, self._shares, rank)
        threads = self.threads[rank]
        own = get_target(self.target).load(program, plan, tensors, CacheConfig(**self.cache), threads, team)
        if not isinstance(own, RankExecutor):
            raise TargetError(f"target {self.target!r} computes in one process; leave tensor_parallel_size out")
        release_pages(tensors)  # the rank has copied its share
        return own

    @property
    def _shares(self) -> Shares:
        return Shares(tuple(self.shares), tuple(self.hosts))
