"""TeamExecutor where rank 0 fails in what all ranks do at once: the others don't wait for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qwench.checkpoint.spec import ModelSpec, RopeSpec
from qwench.errors import CapacityError, TargetError
from qwench.parallel import messages
from qwench.parallel.team_executor import TeamExecutor
from qwench.parallel.team_memory import TeamMemory
from qwench.program.models import build_program
from qwench.program.passes import fuse
from qwench.program.shard import Shares, shard
from qwench.targets.target import StepBatch

SPEC = ModelSpec(300, 192, 320, 1, 6, 2, 32, 1e-6, True, 64, RopeSpec(10000.0), (None,))
BATCH = StepBatch(*(np.zeros(1, np.int32) for _ in range(5)))


class Ranks:
    """Of processes that are always well."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.on_loss = lambda: None

    def watch(self, lose: Any) -> None:
        self.lose = lose

    def close(self) -> None:
        pass


class Own:
    """Rank 0, whose steps fail with `error`; and what it tells the others."""

    def __init__(self) -> None:
        self.program = shard(fuse(build_program(SPEC)), Shares((1, 1), (2,)), 0)
        self.channel, self.lost, self.error, self.joined = self, -1, None, b""
        self.sent: list[tuple[int, str]] = []
        self._mail = np.zeros(1 << 16, np.uint8)

    def invitation(self) -> bytes:
        return b"id"

    def join(self, invitation: bytes) -> None:
        self.joined = invitation

    def step(self, *_: Any) -> str:
        if self.error:
            raise self.error
        return "logits"

    def mail(self) -> np.ndarray:
        return self._mail

    def send(self, kind: int, num_bytes: int) -> None:
        self.sent.append((kind, messages.read(self._mail)[0] if num_bytes else ""))

    def wait_for_others(self) -> str:
        if self.lost >= 0:
            raise RuntimeError("a rank was lost")
        return ""

    def lose(self, rank: int) -> None:
        self.lost = rank

    def lost_rank(self) -> int:
        return self.lost

    def __getattr__(self, name: str) -> Any:
        if name in ("embed", "copy_blocks", "read_block", "write_block", "set_adapter", "kernels", "close",
                    "serve", "acknowledge"):  # fmt: skip
            return lambda *_: None
        raise AttributeError(name)


def team() -> tuple[TeamExecutor, Own, Ranks]:
    own, ranks = Own(), Ranks()
    return TeamExecutor(own, ranks, TeamMemory(0, 0, 0, 1), []), own, ranks  # type: ignore[arg-type]


def test_all_join_and_step_at_once() -> None:
    executor, own, _ = team()
    assert own.joined == b"id"
    assert executor.step(BATCH) == "logits"  # type: ignore[comparison-overlap]
    assert own.sent == [(messages.STEP, "join"), (messages.STEP, "step")]


def test_a_failure_of_rank_0_ends_the_others_and_is_what_is_told() -> None:
    executor, own, _ = team()
    own.error = CapacityError("too little memory")
    with pytest.raises(CapacityError, match="too little memory"):
        executor.step(BATCH)
    assert (own.lost, executor.lost) == (0, "rank 0 failed: too little memory")
    own.error = None
    with pytest.raises(TargetError, match="rank 0 failed: too little memory; load the model again"):
        executor.step(BATCH)
    assert own.sent[-1] == (messages.STEP, "step")  # the first one's


def test_a_loss_that_a_step_finds_is_told_by_its_reason() -> None:
    executor, own, ranks = team()
    ranks.reason = "rank 1 (process 7) was ended by signal 9"

    def step(*_: Any) -> None:
        own.lost = 1
        raise TargetError("a rank was lost")

    own.step = step  # type: ignore[assignment,method-assign]
    with pytest.raises(TargetError, match=r"rank 1 \(process 7\) was ended by signal 9; load the model again"):
        executor.step(BATCH)
