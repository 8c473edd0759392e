"""Loaded contenders asked for the same answers in turns: the rounds of a comparison of one user. Knows no formats."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.process import Worker


@dataclass(frozen=True)
class Model:
    """One contender's: which, under which interpreter, and what `load` wants. program: as of Worker."""

    contender: str
    python: str
    path: str
    program: str | None = None


@dataclass
class Speeds:
    """Tokens/s of each round; answer: the greedy tokens of the last one."""

    prompt: list[float] = field(default_factory=list)
    generate: list[float] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        return {"prompt": statistics.median(self.prompt), "answer": statistics.median(self.generate)}

    def ahead(self, theirs: Speeds) -> dict[str, float]:
        """How many times as fast as another, medians of ratios within rounds."""
        pairs = {"prompt": (self.prompt, theirs.prompt), "answer": (self.generate, theirs.generate)}
        return {name: statistics.median(a / b for a, b in zip(*both, strict=True)) for name, both in pairs.items()}

    def num_same(self, theirs: Speeds) -> int:
        """How many first tokens of the answers are the same ones."""
        pairs = zip(self.answer, theirs.answer)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.answer), len(theirs.answer)))


def measure(
    models: Mapping[str, Model], num_prompt: int, num_generate: int, rounds: int, threads: int, folder: Path,
    vocab_size: int = 1000,
) -> dict[str, Speeds]:  # fmt: skip
    """Label -> speeds; a round that only warms up comes first, and each begins with another one. folder: for logs."""
    found = {label: Speeds() for label in models}
    with _loaded(models, num_prompt + num_generate, threads, folder) as workers:
        for number in range(rounds + 1):
            prompt = random.Random(number).choices(range(vocab_size), k=num_prompt)
            for label in _rotated(list(workers), number):
                reply = workers[label].ask("answer", prompts=[prompt], num_generate=num_generate)
                workers[label].pause()
                found[label].answer = reply["tokens"]
                if number:
                    found[label].prompt.append(num_prompt / reply["prefill_s"])
                    found[label].generate.append(reply["decode_tokens"] / reply["decode_s"])
    return found


@contextmanager
def _loaded(models: Mapping[str, Model], positions: int, threads: int, folder: Path) -> Iterator[dict[str, Worker]]:
    with ExitStack() as stack:
        workers = {}
        for label, model in models.items():
            worker = Worker(model.contender, model.python, folder / f"{model.contender}.log", model.program)
            workers[label] = stack.enter_context(worker)
            worker.ask("describe")
            worker.ask("load", path=model.path, threads=threads, positions=positions, users=1)
            worker.pause()
        yield workers


def _rotated(labels: Sequence[str], number: int) -> list[str]:
    first = number % len(labels)
    return [*labels[first:], *labels[:first]]
