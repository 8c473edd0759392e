"""Metrics of an engine: counters since it was made, sums of durations, and gauges as of the last step.

Written by the engine and its scheduler, read by the server and by benchmarks.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from qwench.runtime.outputs import FinishReason, RequestTimings


@dataclass
class Metrics:
    """Counts are of samples (a request with n = 4 counts four); durations are sums in seconds.

    num_waiting, num_running, blocks_used are as of the last step; blocks_total never changes.
    prompt_tokens are of samples that began; cached_prompt_tokens of them were found in the KV cache.
    step_tokens: computed by the executor, recomputation after a preemption and rejected draft tokens included.
    drafts: how often a sample's step had draft tokens. drafted_tokens: computed as such; accepted_tokens of them were
        what was sampled. draft_model_tokens, draft_model_accepted_tokens: those of the draft model among them; the
        others are prompt lookup's. draft_steps: of the draft model, which took draft_s.
    ttft_s over first_tokens: time to the first token. decode_s over decode_tokens: time per token after the first,
    both of finished samples.
    """

    num_waiting: int = 0
    num_running: int = 0
    blocks_used: int = 0
    blocks_total: int = 0
    requests: int = 0
    finished_stop: int = 0
    finished_length: int = 0
    finished_abort: int = 0
    finished_error: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    step_tokens: int = 0
    drafts: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    draft_model_tokens: int = 0
    draft_model_accepted_tokens: int = 0
    draft_steps: int = 0
    draft_s: float = 0.0
    execute_s: float = 0.0
    waited_s: float = 0.0
    queue_s: float = 0.0
    first_tokens: int = 0
    ttft_s: float = 0.0
    decode_tokens: int = 0
    decode_s: float = 0.0

    def finish(self, reason: FinishReason, timings: RequestTimings, num_generated: int) -> None:
        """Counts a sample that ended."""
        name = f"finished_{reason}"
        setattr(self, name, getattr(self, name) + 1)
        if timings.scheduled_s is not None:
            self.queue_s += timings.scheduled_s - timings.arrival_s
        if timings.first_token_s is not None and timings.finished_s is not None:
            self.first_tokens += 1
            self.ttft_s += timings.first_token_s - timings.arrival_s
            self.decode_tokens += num_generated - 1
            self.decode_s += timings.finished_s - timings.first_token_s

    def count_drafts(self, timings: RequestTimings, num_drafts: int, num_accepted: int, *, by_model: bool) -> None:
        """Counts the draft tokens of a sample's step. by_model: a draft model guessed them."""
        self.drafts += 1
        self.drafted_tokens += num_drafts
        self.accepted_tokens += num_accepted
        timings.num_drafted_tokens += num_drafts
        timings.num_accepted_tokens += num_accepted
        if by_model:
            self.draft_model_tokens += num_drafts
            self.draft_model_accepted_tokens += num_accepted

    def to_dict(self) -> dict[str, int | float]:
        return dataclasses.asdict(self)
