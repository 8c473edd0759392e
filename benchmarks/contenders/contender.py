"""What every contender must be able to do; the worker calls it.

Knows no library. One method is one moment of a user's life: convert the checkpoint, load the result, read prompts,
generate. A contender is loaded once and then serves many works. A library is driven step by step, and the clock is
here; a binary that measures itself is asked what it found.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Compiled:
    """What compiling made. path: what `load` wants. weight_bytes: of the weights alone. note: how they are stored.

    trial_s: of the time it took, what went into choosing among settings, and no user would wait for.
    """

    path: str
    weight_bytes: int
    note: str
    trial_s: float = 0.0


@dataclass(frozen=True)
class Answered:
    """prefill_s: until every user had a first token. decode_tokens: those of all users together in `decode_s`.

    tokens: the first user's answer; empty where the contender reads random prompts of its own.
    """

    prefill_s: float
    decode_s: float
    decode_tokens: int
    tokens: list[int]


class Contender(ABC):
    """One library or binary with one model."""

    formats: tuple[str, ...] = ()  # those of benchmarks.plan.FORMATS that it offers on a CPU

    target = "cpu"  # the kind of processor, in qwench's names; a peer is built for one and has no say

    program: Path | None = None  # the binary, of a contender that is one

    @property
    def serves_many(self) -> bool:
        """Whether it answers several users at once."""
        return True

    @abstractmethod
    def version(self) -> str:
        """Names it and its version. Raises ImportError when it's absent."""

    @abstractmethod
    def compile(self, checkpoint: Path, format_name: str, out: Path, max_positions: int, threads: int) -> Compiled:
        """Makes of a checkpoint what `load` opens, at `out` (a path that doesn't exist) or beside it."""

    @abstractmethod
    def load(self, path: Path, threads: int, positions: int, users: int) -> None:
        """Opens a compiled model for at most `users` sequences at once, together of at most `positions` tokens."""

    @abstractmethod
    def answer(self, prompts: list[list[int]], num_generate: int) -> Answered:
        """Reads the prompts, one a user, and goes on greedily, past any end of text, to `num_generate` tokens each.
        Nothing of earlier works is reused."""


class LibraryContender(Contender):
    """One that lives in this process. `answers`: the tokens generated so far, one list a user."""

    def __init__(self) -> None:
        self.answers: list[list[int]] = []

    def answer(self, prompts: list[list[int]], num_generate: int) -> Answered:
        self.answers = [[] for _ in prompts]
        self.prepare(len(prompts), max(map(len, prompts)) + num_generate)
        start = time.perf_counter()
        self.prefill(prompts, num_generate)
        first = time.perf_counter()
        num_first = sum(map(len, self.answers))
        self.decode()
        end = time.perf_counter()
        assert all(len(tokens) == num_generate for tokens in self.answers)
        return Answered(first - start, end - first, sum(map(len, self.answers)) - num_first, self.answers[0])

    @abstractmethod
    def prepare(self, users: int, positions: int) -> None:
        """Off the clock: what must be set up for `users` sequences of up to `positions` tokens each."""

    @abstractmethod
    def prefill(self, prompts: list[list[int]], num_generate: int) -> None:
        """Reads the prompts, until every user has a first token in `answers`. Nothing of earlier works is reused."""

    @abstractmethod
    def decode(self) -> None:
        """Goes on greedily, past any end of text, until every user has `num_generate` tokens."""

    @abstractmethod
    def cache_bytes(self) -> int:
        """Bytes of KV cache in memory now; what was reserved but never written isn't."""


class LogitsContender(LibraryContender):
    """One that shows its logits, for `benchmarks.quality`."""

    @abstractmethod
    def logits(self, token_ids: list[int], first: int) -> Any:
        """Logits of one sequence from row `first` on: [rows, vocab_size] fp32."""
