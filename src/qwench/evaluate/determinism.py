"""The determinism test: a prompt in other slots and other company must give the same tokens and the same logits.

32 users ask three rounds of the same prompts, moved on by one slot each round; since answers differ in length, each
prompt meets other neighbours, other chunks and other blocks of the cache each time. Knows no text and no files. Called
by `qwench demo --determinism`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwench.evaluate.user_figures import longest_common_start
from qwench.evaluate.users import Answer, Plan, Recording, run_users
from qwench.runtime.engine import Engine
from qwench.runtime.outputs import TokenOutput
from qwench.targets.target import Executor, Float32, StepBatch


@dataclass(frozen=True)
class Difference:
    """Two answers to one prompt that are not the same; token: the first that differs in itself or in its logits."""

    prompt: int
    users: tuple[int, int]
    rounds: tuple[int, int]
    token: int
    same_tokens: bool


@dataclass(frozen=True)
class Determinism:
    """What the test found. num_compared: answers that were held against an earlier one to the same prompt. sha256: of
    all tokens and checksums of logits, by which runs can be compared."""

    recording: Recording
    num_compared: int
    sha256: str
    differences: list[Difference]


class _HashingExecutor:
    """An executor that keeps a checksum of each row of logits of its last step."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.row_checksums: list[int] = []

    def step(
        self, batch: StepBatch, logits: Float32 | None = None, hidden: Float32 | None = None,
        maxima: Float32 | None = None,
    ) -> Float32:  # fmt: skip
        batch = dataclasses.replace(batch, top_groups=None)  # all logits are looked at
        result = self.executor.step(batch, logits, hidden, maxima)
        self.row_checksums = [zlib.crc32(row) for row in result]
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.executor, name)


def check_determinism(
    engine: Engine, plan: Plan, between_steps: Callable[[list[TokenOutput]], None] | None = None
) -> Determinism:
    """Runs the plan and compares each answer with the first one to the same prompt, its logits bit for bit.

    between_steps: as of `run_users`. Raises ConfigError if the plan doesn't fit, and what made a request fail.
    """
    hashing = _HashingExecutor(engine.executor)
    checksums: dict[str, list[int]] = {}

    def keep(outputs: list[TokenOutput]) -> None:
        # Without guesses there is one output for each row of logits, in their order.
        for output, checksum in zip(outputs, hashing.row_checksums, strict=True):
            checksums.setdefault(output.request_id, []).append(checksum)
        if between_steps is not None:
            between_steps(outputs)

    engine.executor = hashing
    try:
        recording = run_users(engine, plan, keep)
    finally:
        engine.executor = hashing.executor
    first: dict[int, Answer] = {}
    differences = []
    for answer in recording.answers:
        expected = first.setdefault(answer.prompt, answer)
        same = longest_common_start(checksums[expected.request_id], checksums[answer.request_id])
        if expected.token_ids != answer.token_ids or same < len(answer.token_ids):
            rounds, users = (expected.batch, answer.batch), (expected.user, answer.user)
            same_tokens = expected.token_ids == answer.token_ids
            differences.append(Difference(answer.prompt, users, rounds, same, same_tokens))
    compared = len(recording.answers) - len(first)
    return Determinism(recording, compared, _transcript_sha256(recording.answers, checksums), differences)


def _transcript_sha256(answers: Sequence[Answer], checksums: Mapping[str, Sequence[int]]) -> str:
    """Of the answers in their order: tokens, and what their logits were."""
    transcript = [(answer.token_ids, checksums[answer.request_id]) for answer in answers]
    return hashlib.sha256(json.dumps(transcript).encode()).hexdigest()
