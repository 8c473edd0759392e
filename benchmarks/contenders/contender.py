"""What every contender must be able to do; the worker calls it and holds the clock.

Knows no library. One method is one moment of a user's life: convert the checkpoint, load the result, read prompts,
generate. A contender is loaded once and then serves many works.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Compiled:
    """What compiling made. path: what `load` wants. weight_bytes: of the weights alone. note: how they are stored."""

    path: str
    weight_bytes: int
    note: str


class Contender(ABC):
    """One library with one model. `answers`: the tokens generated so far, one list a user."""

    formats: tuple[str, ...] = ()  # those of benchmarks.plan.FORMATS that the library offers on a CPU

    target = "cpu"  # the kind of processor, in qwench's names; a peer is built for one and has no say

    def __init__(self) -> None:
        self.answers: list[list[int]] = []

    @abstractmethod
    def version(self) -> str:
        """Imports the library and names it and its version. Raises ImportError when it's absent."""

    @abstractmethod
    def compile(self, checkpoint: Path, format_name: str, out: Path, max_positions: int, threads: int) -> Compiled:
        """Makes of a checkpoint what `load` opens, at `out` (a path that doesn't exist) or beside it."""

    @abstractmethod
    def load(self, path: Path, threads: int, positions: int, users: int) -> None:
        """Opens a compiled model for at most `users` sequences at once, together of at most `positions` tokens."""

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


class LogitsContender(Contender):
    """One that shows its logits, for `benchmarks.quality`."""

    @abstractmethod
    def logits(self, token_ids: list[int], first: int) -> Any:
        """Logits of one sequence from row `first` on: [rows, vocab_size] fp32."""
