"""What users notice, from a Recording: how long until the first token, how fast the rest, how much in all.

The clock is the sum of the steps' own times, so that whatever happened between steps doesn't count. Knows no engine.
Called by `qwench demo`.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from qwench.evaluate.users import Answer, Recording


@dataclass(frozen=True)
class Figures:
    """Of one run.

    prefill_s: until every user has the first token of the first answer; prefill_tokens: of the prompts read for that,
        the first question's of each user; prefill_tokens_per_s: their ratio.
    ttft_s: from a question to its first token: mean over all answers; ttft_min_s, ttft_max_s.
    iteration_s: median step in which users only got their next tokens, while all users were busy; else of any such
        step, None when there was none. tokens_per_s_per_user: its inverse, since each gets one token in it.
    answer_tokens_per_s: mean over answers of tokens after the first over the time they took, other users' prompts
        included; None when no answer had two tokens. total_tokens_per_s: all tokens over total_s, the whole run.
    """

    prefill_s: float
    prefill_tokens: int
    prefill_tokens_per_s: float
    ttft_s: float
    ttft_min_s: float
    ttft_max_s: float
    iteration_s: float | None
    tokens_per_s_per_user: float | None
    answer_tokens_per_s: float | None
    total_tokens_per_s: float
    total_s: float
    num_answers: int
    num_tokens: int
    num_steps: int


def figures(recording: Recording) -> Figures:
    """The figures of a whole recording."""
    plan, answers = recording.plan, recording.answers
    clock = [0.0, *itertools.accumulate(step.seconds for step in recording.steps)]  # before each step, and at the end
    waits = [clock[answer.first_at + 1] - clock[answer.asked_at] for answer in answers]
    speeds = [speed for answer in answers if (speed := _speed(answer, clock)) is not None]
    first = [answer for answer in answers if answer.batch == 0]
    prefill_s = clock[max(answer.first_at for answer in first) + 1]
    prefill_tokens = sum(len(plan.prompts[answer.prompt]) for answer in first)
    num_tokens, iteration_s = sum(len(answer.token_ids) for answer in answers), _iteration_s(recording)
    return Figures(
        prefill_s=prefill_s, prefill_tokens=prefill_tokens, prefill_tokens_per_s=prefill_tokens / prefill_s,
        ttft_s=statistics.mean(waits), ttft_min_s=min(waits), ttft_max_s=max(waits),
        iteration_s=iteration_s, tokens_per_s_per_user=None if iteration_s is None else 1 / iteration_s,
        answer_tokens_per_s=statistics.mean(speeds) if speeds else None,
        total_tokens_per_s=num_tokens / clock[-1], total_s=clock[-1],
        num_answers=len(answers), num_tokens=num_tokens, num_steps=len(recording.steps),
    )  # fmt: skip


def _speed(answer: Answer, clock: Sequence[float]) -> float | None:
    """Tokens after the first over the time from the first to the last."""
    num_more = len(answer.token_ids) - 1
    return num_more / (clock[answer.done_at + 1] - clock[answer.first_at + 1]) if num_more else None


def _iteration_s(recording: Recording) -> float | None:
    steps = [step for step in recording.steps if step.num_decoding and not step.num_prompt_tokens]
    busy = [step for step in steps if step.num_decoding == recording.plan.num_users]
    times = [step.seconds for step in busy or steps]
    return statistics.median(times) if times else None


def longest_common_start(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two answers have in common from their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
