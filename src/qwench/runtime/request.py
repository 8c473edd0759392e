"""What a request asks for, what the engine keeps of it while it runs, and what comes out, all in tokens.

Knows no text: stop strings ride along in `SamplingParams` for `text/`, which ends a request by aborting it. Users
make SamplingParams; the engine makes Requests and TokenOutputs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from qwench.errors import QwenchError, RequestError
from qwench.runtime.grammar import Grammar
from qwench.runtime.pooling import Pooler
from qwench.runtime.prompt_lookup import PromptLookup
from qwench.targets.target import Float32, Int32

if TYPE_CHECKING:
    from qwench.runtime.prompt_scorer import PromptScorer

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop. Checked when made: RequestError says which value is impossible.

    max_tokens: new tokens at most; None: until the model's context (max_seq_len) is full.
    temperature: 0 is greedy (the likeliest token, the lowest id among equals).
    top_k: sample among the k likeliest (and those equal to the k-th); 0: all.
    top_p: sample among the fewest likeliest tokens that together reach this probability; 1: all.
    min_p: sample among tokens at least this likely relative to the likeliest; 0: all.
    repetition_penalty: positive logits of tokens seen in prompt or answer are divided by it, negative multiplied.
    presence_penalty, frequency_penalty: subtracted from logits of the answer's tokens, once / per occurrence.
    logit_bias: token id -> number added to its logit.
    seed: same seed, same tokens, whatever shares the batch; None: a random one.
    stop: strings that end the answer; stop_token_ids: tokens that do. ignore_eos: the model's own end doesn't.
    logprobs: with each token its log-probability, and those of this many likeliest tokens. They are the model's:
        log_softmax of the raw logits, before bias, penalties and temperature.
    prompt_logprobs: the same for the tokens of the prompt, which is then computed anew, whatever the cache holds of it,
        a few tokens a step.
    n: independent answers to the prompt. min_tokens: no end token before this many tokens.
    prompt_lookup_num_tokens: guess up to this many further tokens from what followed the last ones earlier in prompt
        and answer, and check them in the same step; 0: none. Changes how fast the answer comes, never the answer.
    grammar: what the answer must look like. It ends where the grammar allows an end and an end token comes, or where
        nothing else could follow, even before min_tokens; max_tokens and stop strings cut it anywhere.
    skip_special_tokens: leave special tokens out of the text.
    include_stop_str_in_output: keep the stop string, or the stop token's text, at the end of the text.

    Order: logit_bias, min_tokens, repetition, frequency and presence penalty, temperature, top_k, top_p, min_p (as
    transformers). The token chosen so is taken if the grammar allows it; else another one is chosen in the same way
    among those that it allows. So a grammar changes nothing in an answer that obeys it anyway.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    min_tokens: int = 0
    prompt_lookup_num_tokens: int = 0
    grammar: Grammar | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        self._check_numbers()
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not (_is_list(stop) and all(isinstance(s, str) and s for s in stop)):
            raise RequestError(f"stop is {self.stop!r}; it must be a string or strings, none of them empty")
        if not (_is_list(self.stop_token_ids) and all(_int_from(token, 0) for token in self.stop_token_ids)):
            raise RequestError(f"stop_token_ids is {self.stop_token_ids!r}; it must be a list of token ids")
        bias = self.logit_bias
        if not (isinstance(bias, Mapping) and all(_int_from(t, 0) and _is_number(x) for t, x in bias.items())):
            raise RequestError(f"logit_bias is {bias!r}; it must map token ids to finite numbers")
        if not (self.grammar is None or isinstance(self.grammar, Grammar)):
            raise RequestError(f"grammar is {self.grammar!r}; it must be None or a Grammar")
        object.__setattr__(self, "stop", tuple(stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))

    def _check_numbers(self) -> None:
        checks: tuple[tuple[str, bool, str], ...] = (
            ("max_tokens", self.max_tokens is None or _int_from(self.max_tokens, 1), "None or an integer from 1"),
            ("temperature", _is_number(self.temperature) and self.temperature >= 0, "a number from 0"),
            ("top_k", _int_from(self.top_k, 0), "an integer from 0 (0: all tokens)"),
            ("top_p", _is_number(self.top_p) and 0 < self.top_p <= 1, "a number above 0, up to 1"),
            ("min_p", _is_number(self.min_p) and 0 <= self.min_p <= 1, "a number from 0 to 1"),
            (
                "repetition_penalty",
                _is_number(self.repetition_penalty) and self.repetition_penalty > 0,
                "a number above 0",
            ),
            ("presence_penalty", _is_number(self.presence_penalty), "a finite number"),
            ("frequency_penalty", _is_number(self.frequency_penalty), "a finite number"),
            ("seed", self.seed is None or _is_int(self.seed), "None or an integer"),
            ("logprobs", self.logprobs is None or _int_from(self.logprobs, 0), "None or an integer from 0"),
            (
                "prompt_logprobs",
                self.prompt_logprobs is None or _int_from(self.prompt_logprobs, 0),
                "None or an integer from 0",
            ),
            ("n", _int_from(self.n, 1), "an integer from 1"),
            ("min_tokens", _int_from(self.min_tokens, 0), "an integer from 0"),
            ("prompt_lookup_num_tokens", _int_from(self.prompt_lookup_num_tokens, 0), "an integer from 0"),
        )
        for name, good, allowed in checks:
            if not good:
                raise RequestError(f"{name} is {getattr(self, name)!r}; it must be {allowed}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens is {self.min_tokens}, above max_tokens {self.max_tokens}")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _int_from(value: Any, low: int) -> bool:
    return _is_int(value) and value >= low


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass
class RequestTimings:
    """Moments on the `time.monotonic` clock in seconds (None: not yet), and counts, of one sample of a request."""

    arrival_s: float
    scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    num_cached_tokens: int = 0  # prompt tokens whose keys and values were found in the cache
    num_preemptions: int = 0
    num_drafted_tokens: int = 0  # guessed by prompt lookup and computed
    num_accepted_tokens: int = 0  # of these, the ones that were right, so that no step of their own was needed


class TokenLogprobs(NamedTuple):
    """Log-probability of the chosen token, and the likeliest tokens as (id, log-probability), likeliest first."""

    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One new token of sample `index` of a request; with a `finish_reason` it is the last.

    token_id is None when the request ended without a token: "abort", "error" with its `error`, or "stop" where a
    grammar let nothing follow.
    stop_reason: the token of `stop_token_ids` that ended it; None for the model's own end of text.
    timings come with the last output. embedding: [hidden_size] fp32, of a request that asked for it: its only output,
    with the finish_reason "stop". prompt_logprobs: of each token of the prompt, None of the first one; they come with
    the first output of sample 0, where they were asked for.
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


class Request:
    """One sample of what a user asked for, while it runs. Filled by the engine; moved along by the scheduler.

    tokens: [max_len] int32, of which the first num_tokens are known (prompt, then answer) and the first
        num_computed have keys and values in the cache. While a step runs, num_drafts guesses follow the known ones.
    block_table: [num_groups, blocks of max_len] int32: of each cache group's row the blocks from first_block[group] to
        num_blocks are held; those before lie behind the group's window and were given back.
    block_hashes: of the full blocks of known tokens, in order; the first num_registered have been in the cache.
    leader: the first sample of the same prompt, whose blocks this one waits to share.
    lookup: what makes the guesses; None: nobody asked for any.
    pooler: what makes an embedding of the prompt, in place of an answer; None: an answer was asked for.
    scorer: takes the logits of the prompt's tokens; None: nobody asked for them, or another sample does it.
    """

    __slots__ = (
        "arrival", "block_hashes", "block_table", "first_block", "index", "is_running", "leader", "lookup", "max_len",
        "num_blocks", "num_computed", "num_drafts", "num_prompt", "num_registered", "num_tokens", "params",
        "pooler", "request_id", "salt", "sampler", "scorer", "stop_tokens", "timings", "tokens",
    )  # fmt: skip

    def __init__(self, request_id: str, index: int, prompt: Int32, params: SamplingParams, max_len: int) -> None:
        self.request_id, self.index, self.params, self.max_len = request_id, index, params, max_len
        self.num_prompt = self.num_tokens = len(prompt)
        self.tokens: Int32 = np.empty(max_len, np.int32)
        self.tokens[: self.num_prompt] = prompt
        self.num_computed = self.num_blocks = self.num_registered = self.num_drafts = 0
        self.block_table: Int32 = np.empty((1, 0), np.int32)
        self.first_block: list[int] = [0]
        self.block_hashes: list[bytes] = []
        self.salt = b""
        self.arrival = 0
        self.is_running = False
        self.leader: Request | None = None
        self.lookup = PromptLookup(self.tokens) if params.prompt_lookup_num_tokens else None
        self.stop_tokens: frozenset[int] = frozenset()
        self.sampler: Any = None
        self.pooler: Pooler | None = None
        self.scorer: PromptScorer | None = None
        self.timings = RequestTimings(0.0)

    @property
    def num_generated(self) -> int:
        return self.num_tokens - self.num_prompt


def random_seed() -> int:
    return int.from_bytes(os.urandom(8), "little")
