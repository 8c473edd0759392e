"""What the engine returns: tokens, their log-probabilities, embeddings, and when each part of a request was done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from qwench.errors import QwenchError
from qwench.targets.target import Float32

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass
class RequestTimings:
    """Moments on the `time.monotonic` clock in seconds (None: not yet), and counts, of one sample of a request."""

    arrival_s: float
    scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    num_cached_tokens: int = 0  # prompt tokens whose keys and values were found in the cache
    num_preemptions: int = 0
    num_drafted_tokens: int = 0  # guessed by prompt lookup or a draft model, and computed
    num_accepted_tokens: int = 0  # of these, the ones that were what was sampled


class TokenLogprobs(NamedTuple):
    """Log-probability of the chosen token, and the likeliest tokens as (id, log-probability), likeliest first."""

    logprob: float
    top: list[tuple[int, float]]


@dataclass(slots=True)  # not frozen: that would take three times as long, for every token
class TokenOutput:
    """One new token of sample `index` of a request; with a `finish_reason` it is the last.

    token_id: None when the request ended without a token: "abort", "error" with its `error`, or "stop" where the
        grammar allows no further token.
    stop_reason: the token of `stop_token_ids` that ended it; None for an end token of the model.
    timings: in the last output. embedding: fp32, as `Pooler.result` gives it, in the only output of a request for an
        embedding or for scores, whose finish_reason is "stop".
    prompt_logprobs: of each prompt token, None for the first; in the first output of sample 0, if asked for.
    """

    request_id: str
    index: int
    token_id: int | None
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    error: QwenchError | None = None
    timings: RequestTimings | None = None
    embedding: Float32 | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
