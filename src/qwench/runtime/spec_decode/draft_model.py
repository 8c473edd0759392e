"""A draft model: a small model with the same tokenizer, whose likeliest tokens are guesses for a large one.

Its cache has a place for each block of the large model's pool, and it uses the requests' own block tables: sharing of
prefixes, preemption and freeing are the pool's, and nothing is kept twice. Only how much of a block the draft has
computed is its own to know (`BlockPool.num_followed`), since it reads a prompt when it is first asked to guess.

It guesses for all requests that want it at once, a token of each in a step: `speculation.py`, its only caller, says
for whom, and in an `Ask` how far.
"""

from __future__ import annotations

import logging
import math
import time
from bisect import bisect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from qwench.errors import ConfigError, NumericalError
from qwench.runtime.block_pool import BlockPool
from qwench.runtime.spec_decode.step_costs import StepCosts
from qwench.targets.target import (
    LOGIT_GROUP,
    CacheConfig,
    Chain,
    ChainingExecutor,
    ChainRule,
    Executor,
    Float32,
    Int32,
    StepBatch,
)

if TYPE_CHECKING:
    from qwench.runtime.request import Request

Chaining = Callable[[int, int, Int32, ChainRule, Float32, Float32], Chain]
logger = logging.getLogger(__name__)

_FEW_GROUPS = 16  # of logits: the second likeliest token is often in the group of the likeliest
_CATCH_UP = 2  # tokens of a request that a step computes at most, if it reads no prompt: all guesses were right
_NUM_TRIES = 8  # steps, when it is loaded: the first finds nothing in the caches

# How far the largest logit must stand above those of other groups of LOGIT_GROUP, in temperatures where one is given,
# for each class of confidence.
MARGINS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_MARGINS = np.array(MARGINS)
_CERTAIN = 7  # from which confidence on a sampled token is the likeliest one so often that drawing doesn't pay


class Guess(NamedTuple):
    """confidence: from 0 to len(MARGINS)."""

    token: int
    confidence: int


class Ask(NamedTuple):
    """How far to guess for a request: at most `most` tokens, and only as long as all of them are right with a
    probability of `least`. odds: of a guess, by its confidence."""

    most: int
    odds: Sequence[float]
    least: float


class DraftModel:
    """Guesses for up to `max_rows` requests at once over one Executor, which it owns.

    vocab_size: of its own logits, target_vocab_size: of the model that it drafts for; the tokenizer is one, so they
    differ in padding only. cache: of the draft, with num_groups blocks for each of the pool's. windows: of its cache
    groups; target_windows: of the groups whose tables it gets. max_seq_len: beyond which it can't follow.
    Raises ConfigError for a draft that sees further than the pool keeps blocks, NumericalError for one that computes
    no numbers.
    """

    def __init__(
        self, executor: Executor, vocab_size: int, cache: CacheConfig, *, target_vocab_size: int, max_seq_len: int,
        max_rows: int, max_step_tokens: int, max_blocks: int, windows: Sequence[int | None] = (None,),
        target_windows: Sequence[int | None] = (None,),
    ) -> None:  # fmt: skip
        self.executor, self.cache, self.costs = executor, cache, StepCosts()
        self.chain = executor.chain if isinstance(executor, ChainingExecutor) else None
        self.max_seq_len, self.max_rows = max_seq_len, min(max_rows, max_step_tokens)
        self.num_steps, self.seconds = 0, 0.0
        self._vocab_size, self._target_vocab_size = vocab_size, target_vocab_size
        self._max_step_tokens, self._size = max_step_tokens, cache.block_size
        self.group = widest_group(target_windows)
        if not _sees_as_far(target_windows[self.group], windows):
            raise ConfigError(
                f"the draft's attention sees {_in_words(max(map(_reach, windows)))}, and the model's cache keeps "
                f"{_in_words(_reach(target_windows[self.group]))}; take a draft whose sliding window is no larger"
            )
        rows = self.max_rows
        self._token_ids = np.zeros(max_step_tokens, np.int32)
        self._query_start, self._each = np.zeros(rows + 1, np.int32), np.arange(rows + 1, dtype=np.int32)
        self._seq_lens, self._logit_rows = np.ones(rows, np.int32), np.zeros(rows, np.int32)
        self._tables = np.zeros((rows, len(windows), max_blocks), np.int32)
        # Group g has the g-th stretch of blocks, as many as the pool has.
        self._offsets = (np.arange(len(windows)) * (cache.num_blocks // len(windows))).astype(np.int32)[:, None]
        self._logits: Float32 = np.empty((rows, vocab_size), np.float32)
        self._maxima: Float32 = np.empty((rows, -(-vocab_size // LOGIT_GROUP)), np.float32)
        self._active: list[Request] = []
        self._single_tokens: dict[int, StepBatch] = {}  # by how many requests have one
        self._has_warned = False
        self._try_out()

    def _try_out(self) -> None:
        """A few steps of one token, whose fastest tells what one costs. They write to a block that nobody reads yet."""
        self._query_start[1] = 1
        fastest = min(self._step(self._batch(1, 1, self._each[:1])) for _ in range(_NUM_TRIES))
        if not np.isfinite(self._logits[0]).all():
            raise NumericalError("the draft model produces no finite logits; its weights are damaged")
        self.costs.observe(1, fastest)

    def can_follow(self, request: Request) -> bool:
        """Whether it can guess what follows the known tokens of a request."""
        return request.sampler is not None and request.scorer is None and request.num_tokens < self.max_seq_len

    def num_pending(self, request: Request, pool: BlockPool) -> int:
        """How many tokens of the request it must compute for a first guess, at least one."""
        following, first = request.following, request.first_block[self.group] * self._size
        assert following is not None
        if following.num_computed is None or following.num_computed < first:
            # Once it has fallen behind a sliding window it goes on within, without what was before.
            following.num_computed = self._find(request, pool)
        # The last known token is always computed, for logits, also once more after a step that was interrupted.
        following.num_computed = min(following.num_computed, request.num_tokens - 1)
        return request.num_tokens - following.num_computed

    def guess(self, asks: dict[Request, Ask], pool: BlockPool) -> dict[Request, list[Guess]]:
        """Guesses of the next tokens; the last of a request may be one that its `Ask` finds too unlikely. Requests that
        the draft doesn't know well enough yet have none."""
        guessed: dict[Request, list[Guess]] = {request: [] for request in asks}
        odds = dict.fromkeys(asks, 1.0)
        for request in asks:
            assert request.following is not None
            request.following.num_fed = 0
        found, ahead = self._begin(list(asks), pool), 0
        while found:
            last = {}
            for request, guess in found.items():
                ask = asks[request]
                guessed[request].append(guess)
                odds[request] *= ask.odds[guess.confidence]
                if odds[request] >= ask.least and len(guessed[request]) < ask.most:
                    last[request] = guess.token
            ahead += 1
            if self.chain is not None and len(last) == 1:
                [(request, token)] = last.items()
                links, found = self._follow(self.chain, request, token, asks[request], odds[request], ahead)
                guessed[request] += links
                ahead += len(links)
                odds[request] *= math.prod(asks[request].odds[confidence] for _, confidence in links)
            else:
                found = self._go_on(last, ahead) if last else {}
        return guessed

    def _begin(self, requests: Sequence[Request], pool: BlockPool) -> dict[Request, Guess]:
        """Computes what it lacks of these requests, as much of it as a step holds, and guesses the next token of those
        that it has caught up with."""
        start, budget, end, ready = time.perf_counter(), self._max_step_tokens, 0, 0
        batch: list[tuple[Request, int]] = []
        self._active = []
        for request in requests[: self.max_rows]:
            count = min(self.num_pending(request, pool), budget)
            if count == 0:
                break
            following = request.following
            assert following is not None and following.num_computed is not None
            s, done = len(batch), following.num_computed
            self._token_ids[end : end + count] = request.tokens[done : done + count]
            end, budget = end + count, budget - count
            self._query_start[s + 1], self._seq_lens[s] = end, done + count
            self._set_table(s, request)
            batch.append((request, count))
            if done + count == request.num_tokens:
                self._logit_rows[ready] = end - 1
                ready += 1
                self._active.append(request)
        self._keep_vocabulary(end)
        self._step(self._batch(end, len(batch), self._logit_rows[:ready]))
        for request, count in batch:
            self._advance(request, count, pool)
        if len(self._active) < len(batch):  # the rows of those that guess go on alone
            kept = [s for s, (request, _) in enumerate(batch) if request in self._active]
            self._compact(kept)
        guesses = self._guesses(ahead=0)
        self._count(end if end <= _CATCH_UP * len(batch) else None, start)
        return guesses

    def _go_on(self, last: dict[Request, int], ahead: int) -> dict[Request, Guess]:
        """Guesses of the tokens behind `last`, of requests that the last step gave guesses, in that
        order; they are the `ahead`-th behind the next token."""
        start = time.perf_counter()
        self._keep_active(last)
        count = len(last)
        self._token_ids[:count] = list(last.values())
        self._keep_vocabulary(count)
        self._seq_lens[:count] += 1
        self._query_start[: count + 1] = self._each[: count + 1]
        for s, (request, length) in enumerate(zip(self._active, self._seq_lens[:count].tolist())):
            assert request.following is not None
            request.following.num_fed += 1
            if length % self._size == 1:  # a block that may be new
                self._set_table(s, request)
        if count not in self._single_tokens:
            self._single_tokens[count] = self._batch(count, count, self._each[:count])
        self._step(self._single_tokens[count])
        guesses = self._guesses(ahead)
        self._count(count, start)
        return guesses

    def _follow(
        self, chain: Chaining, request: Request, token: int, ask: Ask, odds: float, ahead: int
    ) -> tuple[list[Guess], dict[Request, Guess]]:
        """As `_go_on`, for one request: all guesses behind `token` that needn't be drawn, and the one that must. A
        small draft's step takes no longer than the work between two of them here. odds: of the guesses so far."""
        start, sampler, following = time.perf_counter(), request.sampler, request.following
        assert sampler is not None and following is not None
        self._keep_active({request: token})
        temperature = sampler.params.temperature
        needed = 0 if temperature == 0 else _CERTAIN
        rule = ChainRule(
            ask.most - ahead, _MARGINS, np.array(ask.odds), odds, ask.least, temperature or 1.0,
            needed if sampler.is_plain else len(MARGINS) + 1, self._target_vocab_size,
        )  # fmt: skip
        length = int(self._seq_lens[0]) + 1
        self._token_ids[0] = token
        self._keep_vocabulary(1)
        found = chain(
            int(self._token_ids[0]), length, self._tables[:1].reshape(1, -1), rule, self._logits, self._maxima
        )
        following.num_fed += found.num_steps
        self._seq_lens[0] += found.num_steps
        guess = None if found.has_ended else self._guess(request, 0, ahead + len(found.tokens))
        self._count(1, start, found.num_steps)
        return list(map(Guess, found.tokens, found.confidences)), {} if guess is None else {request: guess}

    def settle(self, request: Request, num_accepted: int, pool: BlockPool) -> None:
        """So many guesses of the last step were right: what it computed of them stays."""
        following = request.following
        assert following is not None
        self._advance(request, min(num_accepted, following.num_fed), pool)
        following.num_fed = 0

    def _count(self, num_tokens: int | None, start: float, num_steps: int = 1) -> None:
        """A step has ended, or several, with the choice of guesses. num_tokens: None if it read a prompt."""
        seconds = time.perf_counter() - start
        if num_tokens is not None:
            for _ in range(num_steps):
                self.costs.observe(num_tokens, seconds / num_steps)
        self.num_steps, self.seconds = self.num_steps + num_steps, self.seconds + seconds

    def _step(self, batch: StepBatch) -> float:
        """Into the rows of logits; returns how long it took, in seconds."""
        start = time.perf_counter()
        self.executor.step(batch, self._logits, None, self._maxima)
        return time.perf_counter() - start

    def _batch(self, num_tokens: int, num_seqs: int, logit_rows: Int32) -> StepBatch:
        """Of the first so many entries of the arrays, which it shows as they are when it is used."""
        return StepBatch(
            self._token_ids[:num_tokens], self._query_start[: num_seqs + 1], self._seq_lens[:num_seqs],
            self._tables[:num_seqs].reshape(num_seqs, -1), logit_rows,
        )  # fmt: skip

    def _guesses(self, ahead: int) -> dict[Request, Guess]:
        """Of the active requests, from their rows of logits. Without one is who got logits that are no numbers."""
        found = {}
        for row, request in enumerate(self._active):
            guess = self._guess(request, row, ahead)
            if guess is not None:
                found[request] = guess
        return found

    def _guess(self, request: Request, row: int, ahead: int) -> Guess | None:
        logits, maxima, sampler = self._logits[row], self._maxima[row], request.sampler
        assert sampler is not None
        group = int(maxima.argmax())
        top = float(maxima[group])
        if not math.isfinite(top):
            if not self._has_warned:
                logger.error("the draft model produced logits that are no finite numbers; such guesses are left out")
            self._has_warned = True
            return None
        if len(maxima) > _FEW_GROUPS:
            maxima[group] = -np.inf
            runner_up = float(maxima.max())
        else:
            runner_up = float(np.partition(logits, -2)[-2])
        temperature = sampler.params.temperature
        confidence = bisect(MARGINS, (top - runner_up) / (temperature or 1.0))
        if sampler.is_plain and (temperature == 0 or confidence >= _CERTAIN):
            first = group * LOGIT_GROUP
            token = first + int(logits[first : first + LOGIT_GROUP].argmax())
        else:
            maxima[group] = top
            token = sampler.guess(*self._fitted(logits, maxima), ahead)
        return None if token >= self._target_vocab_size else Guess(token, confidence)

    def _fitted(self, logits: Float32, maxima: Float32) -> tuple[Float32, Float32 | None]:
        """A row as long as the target's, whose padding is no token."""
        if self._vocab_size == self._target_vocab_size:
            return logits, maxima
        fitted = np.full(self._target_vocab_size, -np.inf, np.float32)
        shared = min(self._vocab_size, self._target_vocab_size)
        fitted[:shared] = logits[:shared]
        return fitted, None

    def _keep_vocabulary(self, count: int) -> None:
        """Tokens of the target's padding, which the draft may not have, are read as some other."""
        if self._vocab_size < self._target_vocab_size:
            ids = self._token_ids[:count]
            ids[ids >= self._vocab_size] = 0

    def _set_table(self, row: int, request: Request) -> None:
        held = request.num_blocks
        np.add(request.block_table[self.group, :held], self._offsets, out=self._tables[row, :, :held])

    def _keep_active(self, last: dict[Request, int]) -> None:
        """Only these go on, in this order."""
        if len(last) < len(self._active):
            kept = [s for s, request in enumerate(self._active) if request in last]
            self._compact(kept)
            self._active = [self._active[s] for s in kept]

    def _compact(self, kept: Sequence[int]) -> None:
        """Rows `kept`, increasing, move to the front."""
        for to, row in enumerate(kept):
            if to < row:
                self._tables[to], self._seq_lens[to] = self._tables[row], self._seq_lens[row]

    def _find(self, request: Request, pool: BlockPool) -> int:
        """How many of the first tokens it has computed already, in blocks that others left or that a preempted request
        finds again."""
        first = request.first_block[self.group]
        count = first * self._size
        for block in request.block_table[self.group, first : request.num_blocks].tolist():
            count += pool.num_followed[block]
            if pool.num_followed[block] < self._size:
                break
        return count

    def _advance(self, request: Request, count: int, pool: BlockPool) -> None:
        """`count` more tokens are in its cache."""
        following = request.following
        assert following is not None and following.num_computed is not None
        start, end = following.num_computed, following.num_computed + count
        following.num_computed = end
        table = request.block_table[self.group]
        for i in range(start // self._size, -(-end // self._size)):
            block = int(table[i])
            pool.num_followed[block] = max(pool.num_followed[block], min(end - i * self._size, self._size))

    def close(self) -> None:
        self.executor.close()


def widest_group(windows: Sequence[int | None]) -> int:
    """The cache group that keeps most positions."""
    return max(range(len(windows)), key=lambda group: _reach(windows[group]))


def _sees_as_far(window: int | None, windows: Sequence[int | None]) -> bool:
    return max(map(_reach, windows)) <= _reach(window)


def _reach(window: int | None) -> float:
    return float("inf") if window is None else window


def _in_words(reach: float) -> str:
    return "all positions" if reach == float("inf") else f"the last {reach:.0f} positions"
