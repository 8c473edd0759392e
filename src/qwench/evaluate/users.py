"""Users who ask and wait: each asks its next question as soon as the last one is answered, all at the same engine.

What comes of it is a Recording: every step with its time, every answer with the steps of its first and last token. All
figures follow from those (`user_figures.py`); nothing is printed or turned into text while the clock runs. Knows no
text and no files. Called by `qwench demo`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qwench.errors import ConfigError
from qwench.runtime.engine import Engine
from qwench.runtime.outputs import FinishReason, TokenOutput
from qwench.runtime.sampling.sampling_params import SamplingParams


@dataclass(frozen=True)
class Plan:
    """Who asks what: `num_users` at the same time, each `num_batches` questions one after the other.

    prompts: tokens of each prompt. User u asks prompt u + b as its question b, counted around, so that a
    prompt moves from slot to slot. num_iterations: tokens of an answer at most after its first one, which
    comes of reading the prompt. stop_token_ids: what ends an answer beside the model's own end of text.
    """

    prompts: Sequence[Sequence[int]]
    num_users: int
    num_batches: int
    num_iterations: int
    stop_token_ids: Sequence[int] = ()

    def prompt_of(self, user: int, batch: int) -> int:
        return (user + batch) % len(self.prompts)

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(
            max_tokens=self.num_iterations + 1, temperature=0.0, stop_token_ids=tuple(self.stop_token_ids)
        )


@dataclass(frozen=True)
class Step:
    """One step of the engine. seconds: its time, with taking in questions and handing out tokens.

    num_prompt_tokens: of prompts that it read. num_decoding: users who got a token that was not their first.
    """

    seconds: float
    num_prompt_tokens: int
    num_decoding: int


@dataclass
class Answer:
    """What one user got to one question. Filled by the run.

    asked_at: the first step after the question; first_at, done_at: the steps of its first and last token.
    token_ids: with the one that ended it.
    """

    user: int
    batch: int
    prompt: int
    asked_at: int
    request_id: str
    first_at: int = -1
    done_at: int = -1
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Recording:
    """A run of `plan`: its steps in order, its answers in the order of the questions."""

    plan: Plan
    steps: list[Step]
    answers: list[Answer]


def check_plan(engine: Engine, plan: Plan) -> None:
    """Raises ConfigError unless the engine can serve all users at once: else the figures would be other ones."""
    for name in ("num_users", "num_batches", "num_iterations"):
        if getattr(plan, name) < 1:
            raise ConfigError(f"{name} is {getattr(plan, name)}; it must be at least 1")
    users, step_tokens = plan.num_users, engine.scheduler.max_step_tokens
    if users > engine.max_num_seqs:
        raise ConfigError(
            f"{users} users at once, but the model was compiled for batch_size {engine.max_num_seqs}; ask for fewer or "
            "compile with a larger batch_size"
        )
    if step_tokens < users:
        raise ConfigError(
            f"{users} users don't fit in steps of {step_tokens} tokens; ask for fewer or compile with a larger "
            "prefill_chunk_size"
        )
    longest = max(map(len, plan.prompts)) + plan.num_iterations + 1
    if longest > engine.max_seq_len:
        raise ConfigError(
            f"the longest prompt and {plan.num_iterations} iterations make {longest} tokens, more than the "
            f"{engine.max_seq_len} the model was compiled for; ask for fewer iterations or give shorter prompts"
        )
    needed = users * engine.scheduler.most_blocks(longest - 1)  # the last token is never computed
    if needed > engine.cache.num_blocks:
        raise ConfigError(
            f"{users} users with up to {longest} tokens each need {needed} cache blocks, and memory allows "
            f"{engine.cache.num_blocks}; ask for fewer users or iterations"
        )


def run_users(
    engine: Engine, plan: Plan, between_steps: Callable[[list[TokenOutput]], None] | None = None
) -> Recording:
    """Runs the plan to its end.

    between_steps: called after each step with what it gave, while the clock stands. Raises ConfigError if the plan
    doesn't fit, and what made a request fail.
    """
    check_plan(engine, plan)
    run = _Run(engine, plan)
    try:
        while run.has_more():
            outputs = run.step()
            if between_steps is not None:
                between_steps(outputs)
    finally:
        run.abort()
    answers = sorted(run.answers, key=lambda answer: (answer.batch, answer.user))
    return Recording(plan, run.steps, answers)


class _Run:
    """A plan on its way through the engine."""

    def __init__(self, engine: Engine, plan: Plan) -> None:
        self.engine, self.plan, self.params = engine, plan, plan.params
        self.steps: list[Step] = []
        self.answers: list[Answer] = []
        self._open: dict[str, Answer] = {}
        self._next = [(user, 0) for user in range(plan.num_users)]  # (user, batch) of questions to be asked now

    def has_more(self) -> bool:
        return bool(self._next or self._open)

    def step(self) -> list[TokenOutput]:
        """Questions in, one step, tokens out: what a user waits for is inside the clock."""
        start_s = time.perf_counter()
        for user, batch in self._next:
            self._ask(user, batch)
        self._next.clear()
        before = self.engine.metrics.step_tokens
        outputs = self.engine.step()
        num_decoding = sum(self._take(output) for output in outputs)
        num_prompt_tokens = self.engine.metrics.step_tokens - before - num_decoding
        self.steps.append(Step(time.perf_counter() - start_s, num_prompt_tokens, num_decoding))
        return outputs

    def _ask(self, user: int, batch: int) -> None:
        prompt = self.plan.prompt_of(user, batch)
        request_id = self.engine.add_request(self.plan.prompts[prompt], self.params)
        answer = self._open[request_id] = Answer(user, batch, prompt, len(self.steps), request_id)
        self.answers.append(answer)

    def _take(self, output: TokenOutput) -> bool:
        """Hands out one token; whether it was one after the user's first."""
        if output.error is not None:
            raise output.error
        assert output.token_id is not None, "nobody aborts a user"
        answer, number = self._open[output.request_id], len(self.steps)
        answer.token_ids.append(output.token_id)
        is_first = len(answer.token_ids) == 1
        if is_first:
            answer.first_at = number
        if output.finish_reason is not None:
            answer.done_at, answer.finish_reason = number, output.finish_reason
            del self._open[output.request_id]
            if answer.batch + 1 < self.plan.num_batches:
                self._next.append((answer.user, answer.batch + 1))
        return not is_first

    def abort(self) -> None:
        for request_id in self._open:
            self.engine.abort(request_id)
