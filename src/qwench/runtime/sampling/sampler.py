"""One row of logits -> one token. Each row by itself, with sums in a fixed order, so that no token depends on what else
is in the batch.

With a grammar a token is sampled without it first; only if the grammar rejects that token is the mask of all allowed
tokens computed and another one sampled. For most tokens that takes microseconds, and an answer that the grammar allows
is the same as without it.

The engine makes one `TokenSampler` per sample. Where the row alone decides, or with penalties, `row_choices.py` takes
the tokens of all rows at once; else the engine calls the sampler once per token. Randomness: a uniform per token, and
another one after a rejection, from a Philox counter keyed by (seed, sample) at the token's position.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from qwench.errors import GrammarError, NumericalError
from qwench.runtime.outputs import TokenLogprobs
from qwench.runtime.sampling.draws import draw
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.runtime.structured_output.matcher import TokenMatcher
from qwench.runtime.thoughts import Thought
from qwench.targets.cpu import _native
from qwench.targets.target import LOGIT_GROUP, Float32

_MOST, _MOST_GROUPS = 2**64 - 1, 2**31 - 1  # that native numbers hold
_COLDEST = 1e-30  # any lower temperature is the same choice, and could divide 0 by 0 in fp32
_STRONGEST = 1e30  # and any higher one, or any stronger penalty or bias, which could overflow


class TokenSampler:
    """Chooses the tokens of one sample: `sample` for a row of logits, in the order of the answer."""

    def __init__(
        self, params: SamplingParams, prompt: npt.NDArray[np.int32], index: int,
        end_tokens: frozenset[int], matcher: TokenMatcher | None = None, thought: Thought | None = None,
    ) -> None:  # fmt: skip
        """matcher: of the sample's grammar, at its beginning. thought: that may come before it."""
        self.params = params
        self.sampling = None if params.temperature == 0 else _sampling(params, index)
        self.num_sampled = 0
        self.bias_ids = np.fromiter(params.logit_bias.keys(), np.int64)
        self.bias = np.fromiter(map(_bounded, params.logit_bias.values()), np.float32)
        self.end_tokens, self.end_ids = end_tokens, np.array(sorted(end_tokens), np.int64)
        self.matcher, self.thought = matcher, thought
        self.history = _History(params, prompt)
        self.is_plain = not (params.logit_bias or params.min_tokens or self.history.is_used)
        self.num_logprobs = params.logprobs
        # Whether the next token is what `choose` draws from a copy of its row of logits once that is processed. The
        # likeliest one needs no copy.
        is_alone = matcher is None and thought is None
        self.is_drawn_once_processed = is_alone and not self.is_plain and self.sampling is not None
        takes_choice = self.is_plain and matcher is None
        # How many groups of a row it looks at, as `StepBatch` counts them.
        self.top_groups = 0
        if takes_choice and params.logprobs is None:
            self.top_groups = 1 if self.sampling is None else min(params.top_k, _MOST_GROUPS)
        # Whether the next token is what `choose` takes of its row of logits, and is then only to be counted. A thought
        # may have a say until it is over.
        self.is_decided_by_row = takes_choice and thought is None

    @property
    def is_over(self) -> bool:
        """Whether the grammar allows no further token."""
        return self.matcher is not None and not self._thinks and self.matcher.is_over

    @property
    def _thinks(self) -> bool:
        """Whether the next token isn't the answer's own, for certain or perhaps."""
        return self.thought is not None and not self.thought.is_over

    def sample(self, row: Float32, maxima: Float32 | None = None) -> tuple[int | None, TokenLogprobs | None]:
        """The token, None where the grammar allows none, and its log-probabilities if they are wanted.

        row: [vocab_size] fp32 contiguous, overwritten. maxima: of each LOGIT_GROUP of them, if they are known; then the
        row needs no more than the `top_groups` of them. Raises NumericalError for NaN or infinite logits, GrammarError
        when the grammar allows no token.
        """
        maxima = _finite(maxima)
        best = _argmax(row, maxima)
        top = float(row[best])
        if not np.isfinite(top):
            raise NumericalError(
                f"the model produced {top} as a logit, at token {self.num_sampled} of the answer; the weights are "
                "damaged, or the checkpoint needs a wider format than it was compiled to"
            )
        wanted, is_changed = self.num_logprobs, not self.is_plain or self.matcher is not None
        raw = row.copy() if wanted is not None and is_changed else row
        if not self.is_plain:
            self.process(row)
            maxima, best = None, int(row.argmax())
            if row[best] == -np.inf:
                raise NumericalError("logit_bias and min_tokens leave no token that could come next")
        forced = None if self.thought is None else self.thought.forced()
        token = self._choose(row, best, maxima) if forced is None else forced
        if self.thought is not None and not self._is_of_thought(self.thought, token):
            self.thought, self.is_decided_by_row = None, self.is_plain and self.matcher is None
        if self.thought is not None:
            token = self.thought.push(token, is_end=token in self.end_tokens)
        elif self.matcher is not None and not self._accepts(self.matcher, token):
            instead = self._choose_allowed(self.matcher, row)
            if instead is None:
                return None, None
            token = instead
        self.take(token)
        return token, None if wanted is None else log_probabilities(raw, top, token, wanted)

    def guess(self, row: Float32, maxima: Float32 | None, ahead: int) -> int:
        """What would be chosen from a draft model's logits for the token `ahead` places behind the next one: by the
        very random number that will choose it, so that alike logits give the same token. Grammar and thought aside.

        row, maxima: as of `sample`. Changes nothing but `row`.
        """
        maxima = _finite(maxima)
        if not self.is_plain:
            self.process(row)
            maxima = None
        best = _argmax(row, maxima)
        if self.sampling is None or not np.isfinite(row[best]):
            return best
        return self._draw(self.sampling, row, maxima, self.num_sampled + ahead)

    def _choose(self, row: Float32, best: int, maxima: Float32 | None, attempt: int = 0) -> int:
        """best: the likeliest token."""
        if self.sampling is None:
            return best
        return self._draw(self.sampling, row, maxima, self.num_sampled, attempt)

    def _draw(
        self, sampling: _native.Sampling, row: Float32, maxima: Float32 | None, counter: int, attempt: int = 0
    ) -> int:
        return draw(row[None], None if maxima is None else maxima[None], [0], [sampling], [counter], attempt)[0]

    def _is_of_thought(self, thought: Thought, token: int) -> bool:
        if thought.may_begin and self.matcher is not None and not thought.begins_with(token):
            thought.begin_answer()
        return not thought.is_over

    def _accepts(self, matcher: TokenMatcher, token: int) -> bool:
        """Whether the grammar allows the token; if so the matcher moves on."""
        return matcher.is_complete if token in self.end_tokens else matcher.accept(token)

    def _choose_allowed(self, matcher: TokenMatcher, row: Float32) -> int | None:
        """Among the tokens that the grammar allows; None if there are none because the answer is complete."""
        allowed = matcher.allowed()
        allowed[self.end_ids] = matcher.is_complete
        ids = np.flatnonzero(allowed & (row > -np.inf))
        if not len(ids):
            if matcher.is_complete:
                return None
            raise GrammarError("the grammar leaves no token that could come next but such as would end the answer")
        values = row[ids]  # often few: a row with -inf in all other places takes a hundred times as long to draw from
        token = int(ids[self._choose(values, int(values.argmax()), None, attempt=1)])
        if not self._accepts(matcher, token):
            raise GrammarError(f"the grammar allowed token {token} and then refused it")
        return token

    def take(self, token: int) -> None:
        """The next token is this one, which `choose` took."""
        self.num_sampled += 1
        if self.history.is_used:
            self.history.append(token)

    def logprobs(self, row: Float32, maxima: Float32, token: int) -> TokenLogprobs | None:
        """Of a token that `choose` took, if they are wanted; row, maxima: as of `sample`."""
        if self.num_logprobs is None:
            return None
        return log_probabilities(row, float(maxima.max()), token, self.num_logprobs)

    def process(self, row: Float32) -> None:
        """Adds bias to a row [vocab_size] fp32 of logits, and takes penalties and what may not come yet off it."""
        if len(self.bias_ids):
            row[self.bias_ids] += self.bias
        if self.num_sampled < self.params.min_tokens:
            row[self.end_ids] = -np.inf
        self.history.penalize(row)


class _History:
    """Tokens seen and how often, for penalties; arrays grow, so that a token costs the same however long the answer."""

    def __init__(self, params: SamplingParams, prompt: npt.NDArray[np.int32]) -> None:
        self.repetition = float(np.float32(max(_bounded(params.repetition_penalty), 1 / _STRONGEST)))
        self.presence = float(np.float32(_bounded(params.presence_penalty)))
        self.frequency = float(np.float32(_bounded(params.frequency_penalty)))
        self.is_used = bool(self.repetition != 1 or self.presence or self.frequency)
        if self.is_used:
            seen = np.flatnonzero(np.bincount(prompt))  # np.unique would import numpy.ma before the first token
            self.num_ids = len(seen)
            self.ids, self.counts = np.zeros(2 * len(seen) + 64, np.int64), np.zeros(2 * len(seen) + 64, np.float32)
            self.ids[: len(seen)] = seen
            self.place = {int(token): i for i, token in enumerate(seen)}

    def append(self, token: int) -> None:
        place = self.place.setdefault(token, self.num_ids)
        if place == self.num_ids:
            if place == len(self.ids):
                self.ids, self.counts = np.resize(self.ids, 2 * place), np.resize(self.counts, 2 * place)
            self.ids[place], self.counts[place] = token, 0
            self.num_ids += 1
        self.counts[place] += 1

    def penalize(self, row: Float32) -> None:
        if not self.is_used:
            return
        ids, counts = self.ids[: self.num_ids], self.counts[: self.num_ids]
        _native.penalize(row, ids, counts, self.repetition, self.presence, self.frequency)


def _sampling(params: SamplingParams, index: int) -> _native.Sampling:
    """Of sample `index`, with a random seed unless one is given."""
    seed = int.from_bytes(os.urandom(8), "little") if params.seed is None else int(params.seed)
    temperature = min(max(params.temperature, _COLDEST), _STRONGEST)
    top_k = min(params.top_k, _MOST)
    return _native.Sampling(temperature, top_k, params.top_p, params.min_p, seed & _MOST, index)


def log_probabilities(row: Float32, top: float, token: int, num_top: int) -> TokenLogprobs:
    """log_softmax of `row` [vocab_size] fp32, whose maximum is `top`, at `token` and at the likeliest tokens."""
    total = top + float(np.log(_native.sum_of_weights(np.exp(row - np.float32(top)))))
    ids = _native.Draws().largest(row, min(num_top, len(row))) if num_top else []
    return TokenLogprobs(row.item(token) - total, [(i, row.item(i) - total) for i in ids])


def _bounded(strength: float) -> float:
    return min(max(strength, -_STRONGEST), _STRONGEST)


def _finite(maxima: Float32 | None) -> Float32 | None:
    """None where they say nothing of their row, since a NaN hides what else is in its group."""
    return None if maxima is None or np.isnan(maxima.max()) else maxima


def _argmax(row: Float32, maxima: Float32 | None) -> int:
    """The first index of the largest value; of the first NaN, if there is one."""
    if maxima is None:
        return int(row.argmax())
    group = int(maxima.argmax())
    start = group * LOGIT_GROUP
    return start + int(row[start : start + LOGIT_GROUP].argmax())
