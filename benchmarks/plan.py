"""What is measured: formats, works, and how many rounds of which. Plain data; knows no contender and no process."""

from __future__ import annotations

import argparse
import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass

MAX_STEP_TOKENS = 512  # tokens of one step: llama.cpp's n_batch = n_ubatch, qwench's prefill_chunk_size


@dataclass(frozen=True)
class Format:
    """Weights of so many bits. `title`: what the table says.

    bf16: as in the checkpoint. int8, int4: every matrix, embedding and head included, so that no contender has
    more bits a weight because of its head. int4-head8: 4 bits, embedding and head 8.
    """

    name: str
    title: str


FORMATS = {
    f.name: f
    for f in (
        Format("bf16", "bf16"),
        Format("int8", "8-bit"),
        Format("int4", "4-bit"),
        Format("int4-head8", "4-bit, head 8"),
    )
}


@dataclass(frozen=True)
class Work:
    """`num_users` prompts of `num_prompt` random tokens at once, each answered greedily with `num_generate` tokens.

    is_slow: unless asked for by name, only the last format does it.
    """

    name: str
    num_users: int
    num_prompt: int
    num_generate: int
    is_slow: bool = False

    def __post_init__(self) -> None:
        assert self.num_users >= 1 and self.num_prompt >= 1 and self.num_generate >= 1

    @property
    def num_positions(self) -> int:
        """Cache positions that one user's sequence takes."""
        return self.num_prompt + self.num_generate

    def prompts(self, vocab_size: int, seed: int) -> list[list[int]]:
        """[num_users][num_prompt] token ids, the same for every contender; new ones for each seed."""
        random_ids = random.Random(f"{self.name} {seed}")
        return [[random_ids.randrange(vocab_size) for _ in range(self.num_prompt)] for _ in range(self.num_users)]


WORKS = {
    w.name: w
    for w in (
        Work("answer", 1, 512, 64),
        Work("users", 16, 32, 16),
        Work("long", 1, 8192, 1, is_slow=True),
    )
}
ANSWER, USERS, LONG = WORKS.values()
OURS = "qwench"
COMPILE, START = "compile", "start"  # works of a whole process
PROFILE = "profile"  # qwench's own, op by op
WORK_NAMES = (COMPILE, START, *WORKS, PROFILE)
START_WORK = Work(START, 1, 16, 1)  # the prompt whose first token ends "start"
WARM_UP = Work("warm-up", 1, 64, 4)  # before the first round, measured by nobody
QUICK_FORMATS, DEFAULT_FORMATS = ("int4",), ("bf16", "int8", "int4")
QUICK_WORKS = tuple(name for name in WORK_NAMES if name != LONG.name)


@dataclass(frozen=True)
class Plan:
    """One run. `works`: names of WORK_NAMES. is_explicit: works were asked for by name, so every format does them.

    patience_s: what takes a contender longer than that is not repeated in later rounds. target: qwench's own, whose
    instructions the ceilings are measured with.
    """

    contenders: tuple[str, ...]
    formats: tuple[str, ...] = DEFAULT_FORMATS
    works: tuple[str, ...] = WORK_NAMES
    rounds: int = 3
    compile_rounds: int = 1
    patience_s: float = 15.0
    threads: int = 1
    seed: int = 0
    target: str = "cpu"
    is_explicit: bool = False

    def answers(self, format_name: str) -> list[Work]:
        """The works that are answered by a loaded model of this format, quick ones first."""
        chosen = [WORKS[name] for name in self.works if name in WORKS]
        skips_slow = not self.is_explicit and format_name != self.formats[-1]
        return sorted((w for w in chosen if not (w.is_slow and skips_slow)), key=lambda w: w.is_slow)

    @property
    def max_positions(self) -> int:
        """Positions that a compiled model must be able to hold for one sequence."""
        return max(w.num_positions for w in (ANSWER, *(WORKS[n] for n in self.works if n in WORKS)))

    def to_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)


def names(allowed: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """An argparse type: "a,b" -> ("a", "b"), each one of `allowed`, at least one, none twice."""

    def parse(text: str) -> tuple[str, ...]:
        given = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        if unknown := [name for name in given if name not in allowed]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(allowed)}")
        if not given:
            raise argparse.ArgumentTypeError(f"nothing is named; there are {', '.join(allowed)}")
        return given

    return parse
