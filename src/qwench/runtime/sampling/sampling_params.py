"""SamplingParams: how the tokens of an answer are chosen, and when it ends. Users make them, the sampler follows them.

Stop strings are only kept here: the engine computes tokens, and `text/` aborts a request whose text has one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qwench.errors import RequestError
from qwench.runtime.structured_output.grammar import Grammar


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
    prompt_lookup_num_tokens: draft tokens per step, taken from what followed the last tokens earlier in prompt and
        answer, and verified in the same step; 0: none. Changes the speed, never the answer.
    grammar: structured output. The answer ends with an end token where the grammar allows it, or where no other token
        could follow, even before min_tokens; max_tokens and stop strings cut it anywhere.
    thinks: a thought in <think> tags may come before the answer, or was opened by the prompt. It is given apart;
        grammar and stop strings are for the answer behind it. With a grammar no answer ends within its thought.
    max_thinking_tokens: of the thought, which then ends with the model's own tag; None: as many as it takes.
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
    thinks: bool = False
    max_thinking_tokens: int | None = None
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
            (
                "max_thinking_tokens",
                self.max_thinking_tokens is None or _int_from(self.max_thinking_tokens, 0),
                "None or an integer from 0",
            ),
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
