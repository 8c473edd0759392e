"""TeamExecutor: rank 0's Executor, which has the other ranks do what it does."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from qwench.errors import QwenchError, TargetError
from qwench.lora.adapter import LoraAdapter
from qwench.parallel import messages
from qwench.parallel.block_parts import BlockParts
from qwench.parallel.ranks import Ranks
from qwench.parallel.team_memory import TeamMemory
from qwench.targets.target import Bytes, Float32, Int32, JoiningExecutor, RankExecutor, StepBatch

Result = TypeVar("Result")


class TeamExecutor:
    """own: of this rank. ranks: of this host. shared: what lies where in their memory. others: their parts of a block,
    in the order of ranks. Once a rank was lost, every call raises TargetError, which says which one and why."""

    def __init__(
        self, own: RankExecutor, ranks: Ranks, shared: TeamMemory, others: Sequence[BlockParts]
    ) -> None:  # fmt: skip
        self.program, self._own, self._ranks, self._others = own.program, own, ranks, others
        self._shared, self._channel = shared, own.channel
        self._parts = BlockParts.of(own.program)
        self._closed = False
        weakref.finalize(self, ranks.close)  # for those who never call close
        ranks.watch(own.channel.lose)
        self._wait_for_own_host()
        if isinstance(own, JoiningExecutor):
            invitation = own.invitation()
            self._take_part(lambda: own.join(invitation), "join", invitation)

    @property
    def lost(self) -> str | None:
        """Why no call can be served any more."""
        return self._ranks.reason

    def tell_of_loss(self, tell: Callable[[], None]) -> None:
        """`tell` is called, in a thread of its own, when a rank was lost."""
        self._ranks.on_loss = tell

    def step(
        self, batch: StepBatch, logits: Float32 | None = None, hidden: Float32 | None = None,
        maxima: Float32 | None = None,
    ) -> Float32:  # fmt: skip
        return self._take_part(lambda: self._own.step(batch, logits, hidden, maxima), "step", batch)

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

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._channel.lost_rank() < 0:
            self._channel.send(messages.CLOSE, 0)
        self._ranks.close()
        self._own.close()

    def _call(self, method: str, *arguments: Any) -> list[list[bytes]]:
        """Has all other ranks do it, waits, and returns what those of other hosts gave, if anything. Raises
        TargetError, also for what one of them couldn't do."""
        self._send(messages.CALL, method, *arguments)
        self._wait_for_own_host()
        return self._results_of_hosts()

    def _take_part(self, own: Callable[[], Result], method: str, *arguments: Any) -> Result:
        """Has all other ranks do what this one does by `own`, at the same time."""
        self._send(messages.STEP, method, *arguments)
        try:
            result = own()
        except BaseException as error:
            if self._channel.lost_rank() >= 0:
                raise self._failure() from None
            self._ranks.reason = self._ranks.reason or f"rank 0 failed: {error or type(error).__name__}"
            self._channel.lose(0)  # the others wait for what this rank doesn't give any more
            raise
        self._wait_for_own_host()
        return result

    def _results_of_hosts(self) -> list[list[bytes]]:
        return []

    def _send(self, kind: int, method: str, *arguments: Any) -> None:
        if self._channel.lost_rank() >= 0:
            raise self._failure()
        self._channel.send(kind, messages.write(self._channel.mail(), method, arguments))

    def _wait_for_own_host(self) -> None:
        try:
            error = self._channel.wait_for_others()
        except RuntimeError:
            raise self._failure() from None
        if error:
            raise TargetError(error)

    def _failure(self) -> QwenchError:
        if self._ranks.reason is None:
            self._ranks.on_loss()  # which watches over ranks of this host, not over hosts
        return TargetError(f"{self.lost or 'a rank was lost'}; load the model again")
