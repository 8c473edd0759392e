"""TeamExecutor: rank 0's Executor, which has the other ranks do what it does.

A step goes to them by itself, in native code; every other call that changes their state is sent, too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qwench.errors import QwenchError, TargetError
from qwench.lora.adapter import LoraAdapter
from qwench.parallel import messages
from qwench.parallel.block_parts import BlockParts
from qwench.parallel.hosts import Hosts
from qwench.parallel.ranks import Ranks
from qwench.parallel.team_memory import TeamMemory
from qwench.targets.cpu.executor import CpuExecutor
from qwench.targets.target import Bytes, Float32, Int32, StepBatch


class TeamExecutor:
    """own: of this rank. ranks: of this host. shared: what lies where in their memory. others: their parts of a block,
    in the order of ranks. hosts: if there are several. Once a rank or a host was lost, every call raises TargetError,
    which says which one and why."""

    def __init__(
        self, own: CpuExecutor, ranks: Ranks, shared: TeamMemory, others: Sequence[BlockParts],
        hosts: Hosts | None = None,
    ) -> None:  # fmt: skip
        self.program, self._own, self._ranks, self._others = own.program, own, ranks, others
        self._shared = shared
        self._hosts = hosts
        self._parts = BlockParts.of(own.program)
        self._closed = False
        weakref.finalize(self, ranks.close)  # for those who never call close
        ranks.watch(own.native.lose)
        self._wait_for_own_host()

    @property
    def lost(self) -> str | None:
        """Why no call can be served any more."""
        if self._hosts is None:
            return self._ranks.reason
        silent = self._own.native.lost_host()
        return self._hosts.lost or (
            f"{self._hosts.name(silent)} has not answered" if silent >= 0 else self._ranks.reason
        )

    def tell_of_loss(self, tell: Callable[[], None]) -> None:
        """`tell` is called, in a thread of its own, when a rank was lost."""
        self._ranks.on_loss = tell

    def step(
        self, batch: StepBatch, logits: Float32 | None = None, hidden: Float32 | None = None,
        maxima: Float32 | None = None,
    ) -> Float32:  # fmt: skip
        if (positions := int(batch.seq_lens.max())) > self._own.num_positions:
            self._call("grow_rope_table", positions)
        try:
            return self._own.step(batch, logits, hidden, maxima)
        except RuntimeError:
            if self._own.native.lost_rank() < 0:
                raise
            raise self._failure() from None

    def waited_seconds(self) -> float:
        return self._own.native.waited_seconds()

    def exchanged(self) -> tuple[int, int, int]:
        """Exchanges between hosts so far, and bytes that this one sent and received in them."""
        return self._own.native.exchanged()

    def embed(self, token_ids: Int32) -> Float32:
        return self._own.embed(token_ids)

    def set_adapter(self, number: int, adapter: LoraAdapter | None) -> None:
        self._own.set_adapter(number, adapter)  # which says what is wrong with it
        self._call("set_adapter", number, adapter)

    def copy_blocks(self, source: Sequence[int], destination: Sequence[int]) -> None:
        self._own.copy_blocks(source, destination)
        self._call("copy_blocks", list(map(int, source)), list(map(int, destination)))

    def read_block(self, block: int) -> Bytes:
        part = self._own.read_block(block)
        whole = np.empty(self._parts.whole_bytes(part), np.uint8)
        of_hosts = self._call("read_block", int(block))
        self._parts.put(part, whole)
        num_here = len(self._others) - sum(map(len, of_hosts))
        for rank, parts in enumerate(self._others[:num_here], 1):
            parts.put(self._shared.result(self._ranks.memory, rank, parts.part_bytes(len(whole))), whole)
        elsewhere = [part for parts in of_hosts for part in parts]
        for parts, data in zip(self._others[num_here:], elsewhere, strict=True):
            parts.put(np.frombuffer(data, np.uint8), whole)
        return whole

    def write_block(self, block: int, data: Bytes) -> None:
        self._own.write_block(block, self._parts.take(data))
        self._call("write_block", int(block), data)

    def kernels(self) -> dict[str, str]:
        return self._own.kernels()

    def op_seconds(self) -> dict[str, dict[str, float]]:
        """Of rank 0, waiting for the others included."""
        return self._own.op_seconds()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._own.native.lost_rank() < 0:
            self._own.native.send(messages.CLOSE, 0)
        self._ranks.close()
        self._own.close()

    def _call(self, method: str, *arguments: Any) -> list[list[bytes]]:
        """Has all other ranks do it, waits, and returns what those of other hosts gave, if anything. Raises
        TargetError, also for what one of them couldn't do."""
        num_bytes = messages.write(self._own.native.mail(), method, arguments)
        self._own.native.send(messages.CALL, num_bytes)
        self._wait_for_own_host()
        try:
            return [] if self._hosts is None else self._hosts.results()
        except TargetError as error:
            raise (self._failure() if self.lost else error) from None

    def _wait_for_own_host(self) -> None:
        try:
            error = self._own.native.wait_for_others()
        except RuntimeError:
            raise self._failure() from None
        if error:
            raise TargetError(error)

    def _failure(self) -> QwenchError:
        if self._ranks.reason is None:
            self._ranks.on_loss()  # which watches over ranks of this host, not over hosts
        return TargetError(f"{self.lost or 'a rank was lost'}; load the model again")
