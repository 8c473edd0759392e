"""CpuTeamExecutor: rank 0 of CPUs, of several hosts perhaps. Steps go to other ranks by themselves, in native code."""

from __future__ import annotations

from collections.abc import Sequence

from qwench.errors import TargetError
from qwench.parallel.block_parts import BlockParts
from qwench.parallel.hosts import Hosts
from qwench.parallel.ranks import Ranks
from qwench.parallel.team_executor import TeamExecutor
from qwench.parallel.team_memory import TeamMemory
from qwench.targets.cpu.executor import CpuExecutor
from qwench.targets.target import Float32, StepBatch


class CpuTeamExecutor(TeamExecutor):
    """hosts: if there are several."""

    def __init__(
        self, own: CpuExecutor, ranks: Ranks, shared: TeamMemory, others: Sequence[BlockParts],
        hosts: Hosts | None = None,
    ) -> None:  # fmt: skip
        self._native, self._hosts, self._cpu = own.native, hosts, own
        super().__init__(own, ranks, shared, others)

    @property
    def lost(self) -> str | None:
        if self._hosts is None:
            return super().lost
        silent = self._native.lost_host()
        return self._hosts.lost or (
            f"{self._hosts.name(silent)} has not answered" if silent >= 0 else self._ranks.reason
        )

    def step(
        self, batch: StepBatch, logits: Float32 | None = None, hidden: Float32 | None = None,
        maxima: Float32 | None = None,
    ) -> Float32:  # fmt: skip
        if (positions := int(batch.seq_lens.max())) > self._cpu.num_positions:
            self._call("grow_rope_table", positions)
        try:
            return self._own.step(batch, logits, hidden, maxima)
        except RuntimeError:
            if self._native.lost_rank() < 0:
                raise
            raise self._failure() from None

    def waited_seconds(self) -> float:
        return self._native.waited_seconds()

    def exchanged(self) -> tuple[int, int, int]:
        """Exchanges between hosts so far, and bytes that this one sent and received in them."""
        return self._native.exchanged()

    def op_seconds(self) -> dict[str, dict[str, float]]:
        """Of rank 0, waiting for the others included."""
        return self._cpu.op_seconds()

    def _results_of_hosts(self) -> list[list[bytes]]:
        try:
            return [] if self._hosts is None else self._hosts.results()
        except TargetError as error:
            raise (self._failure() if self.lost else error) from None
