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
from qwench.parallel.ranks import Ranks
from qwench.targets.cpu.executor import CpuExecutor
from qwench.targets.target import Bytes, Float32, Int32, StepBatch


class TeamExecutor:
    """own: of this rank. others: their parts of a block, in the order of ranks. Once a rank was lost, every call raises
    TargetError, which says which one and why."""

    def __init__(self, own: CpuExecutor, ranks: Ranks, others: Sequence[BlockParts]) -> None:
        self.program, self._own, self._ranks, self._others = own.program, own, ranks, others
        self._parts = BlockParts.of(own.program)
        self._closed = False
        weakref.finalize(self, ranks.close)  # for those who never call close
        ranks.watch(own.native.lose)
        self._wait()

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
        if (positions := int(batch.seq_lens.max())) > self._own.num_positions:
            self._call("grow_rope_table", positions)
        try:
            return self._own.step(batch, logits, hidden, maxima)
        except RuntimeError:
            if self._own.native.lost_rank() < 0:
                raise
            raise self._failure() from None

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
        self._call("read_block", int(block))
        self._parts.put(part, whole)
        for rank, parts in enumerate(self._others, 1):
            parts.put(messages.result(self._own.native.mail(), rank, parts.part_bytes(len(whole))), whole)
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
            self._own.native.send(messages.CLOSE)
        self._ranks.close()
        self._own.close()

    def _call(self, method: str, *arguments: Any) -> None:
        """Has all other ranks do it, and waits. Raises TargetError, also for what one of them couldn't do."""
        messages.write(self._own.native.mail(), method, arguments)
        self._own.native.send(messages.CALL)
        self._wait()

    def _wait(self) -> None:
        try:
            error = self._own.native.wait_for_others()
        except RuntimeError:
            raise self._failure() from None
        if error:
            raise TargetError(error)

    def _failure(self) -> QwenchError:
        return TargetError(f"{self.lost or 'a rank was lost'}; load the model again")
