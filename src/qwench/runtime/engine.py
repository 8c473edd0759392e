"""The engine: requests in, tokens out. One step: schedule, execute, sample, return.

Works on tokens only; text is `text/`'s. `LLM`, the command line, the server and `QwenchForCausalLM` add requests and
call `step` until `has_unfinished` is false. Not thread-safe: one caller at a time.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Iterable, Sequence

import numpy as np

from qwench.checkpoint.heads import LANGUAGE_MODEL, HeadSpec
from qwench.errors import DeadlineError, GrammarError, NumericalError, QwenchError, RequestError
from qwench.runtime.adapters import Adapters, LoadedAdapter
from qwench.runtime.block_pool import BlockPool
from qwench.runtime.cached_prefixes import CachedPrefixes
from qwench.runtime.input_batch import InputBatch, LogitRows
from qwench.runtime.limits import RequestLimits
from qwench.runtime.metrics import Metrics
from qwench.runtime.outputs import FinishReason, TokenLogprobs, TokenOutput
from qwench.runtime.pooling import Pooler, PoolingParams
from qwench.runtime.profiler import Profiler
from qwench.runtime.request import Request
from qwench.runtime.sampling.prompt_scorer import PromptScorer
from qwench.runtime.sampling.row_choices import UNDECIDED, choose
from qwench.runtime.sampling.sampler import TokenSampler
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.runtime.scheduler import MAX_EXTRA_ROWS, Scheduler
from qwench.runtime.spec_decode.draft_model import DraftModel
from qwench.runtime.spec_decode.speculation import Speculation
from qwench.runtime.structured_output.matcher import CompiledGrammar
from qwench.runtime.thoughts import Thought, Thoughts
from qwench.targets.target import LOGIT_GROUP, CacheConfig, Executor, Float32, Int32, SharedExecutor

logger = logging.getLogger(__name__)


class Engine:
    """Generates for many requests at once over one Executor, which it owns.

    max_seq_len: tokens of a sequence, prompt and answer. max_num_seqs: sequences that generate at once.
    max_step_tokens: tokens that the executor computes in one step. eos_token_ids: the model's own ends of text.
    timeout_s: after which a request fails with DeadlineError, at the end of a step. profiler: counts the time of ops.
    windows: the sliding window of each cache group of the model (program/cache_groups.py). head, is_causal: as the
    model's spec has them; without causal attention prompts are computed whole and share no prefixes. draft: guesses
    tokens, which changes how many steps an answer takes and nothing else; the engine owns it.
    """

    def __init__(
        self, executor: Executor, vocab_size: int, cache: CacheConfig, *, max_seq_len: int, max_num_seqs: int,
        max_step_tokens: int, eos_token_ids: Iterable[int] = (), enable_prefix_caching: bool = True,
        timeout_s: float | None = None, profiler: Profiler | None = None, windows: Sequence[int | None] = (None,),
        head: HeadSpec = LANGUAGE_MODEL, is_causal: bool = True, draft: DraftModel | None = None,
    ) -> None:  # fmt: skip
        self.timeout_s, self.profiler = timeout_s, profiler
        self.executor, self.vocab_size, self.cache = executor, vocab_size, cache
        self.max_seq_len, self.max_num_seqs = max_seq_len, max_num_seqs
        self.limits = RequestLimits(
            vocab_size, max_seq_len, cache.block_size, cache.num_blocks, max_step_tokens, tuple(windows), head,
            is_causal,
        )  # fmt: skip
        self.eos_token_ids = frozenset(eos_token_ids)
        self.metrics = Metrics(blocks_total=cache.num_blocks)
        self._waited_seconds = executor.waited_seconds if isinstance(executor, SharedExecutor) else None
        self.adapters = Adapters(executor)
        self.scheduler = Scheduler(
            BlockPool(cache.num_blocks), cache.block_size, max_num_seqs, max_step_tokens,
            enable_prefix_caching and is_causal, self.metrics, windows, whole_prompts=not is_causal,
        )  # fmt: skip
        self.prefixes = CachedPrefixes(self.scheduler, executor)
        self.speculation = Speculation(self.scheduler, draft)
        self.requests: dict[str, dict[int, Request]] = {}
        self._arrivals, self._names = itertools.count(), itertools.count()
        num_rows = max_step_tokens if head.is_classifier else max_num_seqs + MAX_EXTRA_ROWS
        self._batch = InputBatch(
            max_step_tokens, max_num_seqs, len(windows), -(-max_seq_len // cache.block_size), num_rows
        )
        num_outputs = vocab_size if head.kind == "causal_lm" else head.num_labels
        self._logits: Float32 = np.empty((num_rows, num_outputs), np.float32)
        self._hidden: Float32 | None = None  # [1, max_step_tokens, hidden_size], from the first embedding on
        self._maxima: Float32 = np.empty((num_rows, -(-num_outputs // LOGIT_GROUP)), np.float32)

    def add_request(
        self, prompt_token_ids: Sequence[int] | Int32, params: SamplingParams | None = None,
        request_id: str | None = None, *, cache_salt: str = "", grammar: CompiledGrammar | None = None,
        adapter: str | None = None, thoughts: Thoughts | None = None,
    ) -> str:  # fmt: skip
        """Queues a request with `params.n` samples and returns its id. Raises RequestError if it can't be served.

        Only requests with equal `cache_salt` and the same adapter share prefixes in the KV cache. grammar:
        params.grammar, compiled for the model's vocabulary. adapter: the name of a LoRA adapter of `adapters`.
        thoughts: where params.thinks, what there is to know of them.
        """
        params = params or SamplingParams()
        if (params.grammar is not None and grammar is None) or (params.thinks and thoughts is None):
            raise RequestError(
                "the engine itself compiles no grammars and knows no thoughts; give the request to LLM or TextEngine"
            )
        prompt, max_len = self.check_request(prompt_token_ids, params)
        loaded = self._adapter(adapter)
        request_id = self._new_id(request_id)
        ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.eos_token_ids)
        arrival_s, leader = time.monotonic(), None
        # prompt_logprobs need the logits of all prompt tokens, so the first sample reads no cached prefix: with a salt
        # of its own only the other samples, or itself after a preemption, share its blocks.
        scores = params.prompt_logprobs is not None
        salt = os.urandom(16) + b"scored" if scores else _salt(cache_salt, loaded)
        samples = self.requests[request_id] = {}
        for index in range(params.n):
            request = self._new_request(request_id, index, prompt, params, max_len, salt, arrival_s, loaded)
            request.stop_tokens = ends
            matcher = None if grammar is None else grammar.matcher()
            thought = None if thoughts is None else Thought(thoughts, before_grammar=grammar is not None)
            request.sampler = TokenSampler(params, prompt, index, ends, matcher, thought)
            # A prompt of less than one block has no block to share, so its samples needn't wait for the first.
            shares_blocks = self.scheduler.enable_prefix_caching and len(prompt) > self.cache.block_size
            request.leader = leader if shares_blocks or scores else None
            if params.prompt_logprobs is not None and index == 0:
                request.scorer = PromptScorer(prompt, params.prompt_logprobs)
            leader = leader or request
            samples[index] = request
            self.scheduler.add(request)
        self.metrics.requests += params.n
        return request_id

    def add_pooled(
        self, prompt_token_ids: Sequence[int] | Int32, pooling: PoolingParams, request_id: str | None = None, *,
        cache_salt: str = "", adapter: str | None = None,
    ) -> str:  # fmt: skip
        """Queues a prompt that gets an embedding or scores instead of an answer, and returns its id. Raises
        RequestError if it can't be served."""
        prompt = self.limits.check_pooled(prompt_token_ids, pooling.source)
        loaded = self._adapter(adapter)
        request_id = self._new_id(request_id)
        # What needs the rows of all tokens reads no cached prefix but its own, after a preemption.
        salt = os.urandom(16) + b"rows" if pooling.pooling != "last" else _salt(cache_salt, loaded)
        params, now = SamplingParams(max_tokens=1), time.monotonic()
        request = self._new_request(request_id, 0, prompt, params, len(prompt), salt, now, loaded)
        request.pooler = Pooler(pooling, len(prompt))
        if self._hidden is None and pooling.source == "hidden":
            width = self.executor.embed(np.zeros(1, np.int32)).shape[1]
            self._hidden = np.empty((1, self.scheduler.max_step_tokens, width), np.float32)
        self.requests[request_id] = {0: request}
        self.scheduler.add(request)
        self.metrics.requests += 1
        return request_id

    def _new_id(self, wanted: str | None) -> str:
        request_id = f"request-{next(self._names)}" if wanted is None else wanted
        if request_id in self.requests:
            raise RequestError(f"there is already an unfinished request with the id {request_id!r}")
        return request_id

    def _new_request(
        self, request_id: str, index: int, prompt: Int32, params: SamplingParams, max_len: int, salt: bytes,
        arrival_s: float, adapter: LoadedAdapter | None,
    ) -> Request:  # fmt: skip
        request = Request(
            request_id, index, prompt, params, max_len, arrival=next(self._arrivals), arrival_s=arrival_s, salt=salt,
            num_groups=len(self.scheduler.windows), block_size=self.cache.block_size,
        )  # fmt: skip
        request.adapter = adapter
        self.adapters.begin(adapter)
        return request

    def _adapter(self, name: str | None) -> LoadedAdapter | None:
        return None if name is None else self.adapters.find(name)

    def check_request(self, prompt_token_ids: Sequence[int] | Int32, params: SamplingParams) -> tuple[Int32, int]:
        """The prompt as [n] int32, and the most tokens its sequence may have. Raises RequestError."""
        return self.limits.check(prompt_token_ids, params)

    def has_unfinished(self) -> bool:
        return bool(self.requests)

    def abort(self, request_id: str, index: int | None = None, reason: FinishReason = "abort") -> list[TokenOutput]:
        """Ends a request, or one sample of it, at once; does nothing if it is finished or unknown.

        Returns the last output of each sample that it ended; `step` returns no more of them. reason: "stop" when the
        answer is complete, as after a stop string.
        """
        samples = self.requests.get(request_id, {})
        ended = [r for i, r in samples.items() if index is None or i == index]
        return [self._finish(request, None, reason) for request in ended]

    def step(self) -> list[TokenOutput]:
        """Computes one step and returns the new tokens; none while all scheduled requests are still in prefill.

        With prompt lookup or a draft a sample may get several tokens: one output each, in order.
        """
        plan = self.scheduler.schedule()
        if not plan:
            assert not self.requests
            return []
        try:
            self.speculation.extend(plan)
        except Exception as error:
            return self._fail_running(error)
        batch, with_logits, pooled = self._batch.fill(plan, with_adapters=self.adapters.are_any)
        start = time.monotonic()
        try:
            self.executor.step(batch, self._logits, None if batch.hidden_rows is None else self._hidden, self._maxima)
        except Exception as error:
            return self._fail_running(error)
        now = time.monotonic()
        if len(batch.logit_rows) == len(batch.token_ids):  # it read no prompt
            self.speculation.costs.observe(len(batch.token_ids), now - start)
        metrics = self.metrics
        metrics.steps += 1
        metrics.step_tokens += len(batch.token_ids)
        metrics.execute_s += now - start
        if self._waited_seconds is not None:
            metrics.waited_s = self._waited_seconds()
        self.scheduler.advance_all(plan)
        outputs = self._pool(pooled)
        if with_logits:
            outputs += self._take_tokens(with_logits, len(batch.logit_rows), now)
        if self.timeout_s is not None:
            outputs += self._expire(time.monotonic() - self.timeout_s)
        metrics.num_running, metrics.num_waiting = len(self.scheduler.running), len(self.scheduler.waiting)
        metrics.blocks_used = metrics.blocks_total - self.scheduler.pool.num_free
        if (draft := self.speculation.draft) is not None:
            metrics.draft_steps, metrics.draft_s = draft.num_steps, draft.seconds
        return outputs

    def _pool(self, pooled: list[tuple[Request, int]]) -> list[TokenOutput]:
        """Gives each request for an embedding or for scores its rows, and finishes those that are computed."""
        outputs, first = [], {"hidden": 0, "scores": 0}
        for request, num_rows in pooled:
            assert request.pooler is not None
            source = request.pooler.params.source
            rows = self._logits if source == "scores" or self._hidden is None else self._hidden[0]
            request.pooler.add(rows[first[source] : first[source] + num_rows])
            first[source] += num_rows
            if request.num_computed < request.num_tokens:
                continue
            try:
                outputs.append(self._finish(request, None, "stop", embedding=request.pooler.result()))
            except NumericalError as error:
                self.scheduler.forget_content(request)
                outputs.append(self._finish(request, None, "error", error=error))
        return outputs

    def _take_tokens(self, with_logits: list[LogitRows], num_rows: int, now: float) -> list[TokenOutput]:
        """with_logits: as of `InputBatch.fill`."""
        chosen, end = choose(self._logits, self._maxima, num_rows, with_logits), 0
        outputs: list[TokenOutput] = []
        for request, num_scored, num_sampled in with_logits:
            first, end = end, end + num_scored + num_sampled
            if request.scorer is not None:
                scored, sampled = range(first, first + num_scored), range(first + num_scored, end)
                outputs += self._take_scored(request, scored, sampled, chosen, now)
            elif request.num_drafts:
                outputs += self._sample_run(request, range(first, end), chosen, now)
            elif (token := chosen[first]) == UNDECIDED or not request.num_generated or request.end_with(token):
                outputs += self._sample(request, first, chosen, now)
            else:  # most of the tokens
                sampler, logprobs = request.sampler, None
                assert sampler is not None
                sampler.take(token)
                if sampler.num_logprobs is not None:
                    logprobs = sampler.logprobs(self._logits[first], self._maxima[first], token)
                self._keep(request, token)
                outputs.append(TokenOutput(request.request_id, request.index, token, logprobs))
        return outputs

    def _take_scored(
        self, request: Request, scored: range, sampled: range, chosen: list[int], now: float
    ) -> list[TokenOutput]:
        """For a request with a scorer. scored: rows of logits for prompt_logprobs; sampled: those after its last token
        and after each draft token; chosen: as of `choose`."""
        scorer = request.scorer
        assert scorer is not None
        if scored:
            try:
                scorer.add(self._logits[scored.start : scored.stop], self._maxima[scored.start : scored.stop])
            except NumericalError as error:
                self.scheduler.forget_content(request)
                return [self._finish(request, None, "error", error=error)]
        if not sampled:
            return []
        request.scorer = None
        outputs = self._sample_run(request, sampled, chosen, now)
        outputs[0].prompt_logprobs = scorer.logprobs
        return outputs

    def _sample_run(self, request: Request, rows: range, chosen: list[int], now: float) -> list[TokenOutput]:
        """Samples the next token, and then one after each draft token, as long as the draft is what was sampled.

        Each token is sampled exactly as without drafts, so the answer is the same too.
        """
        start, count = request.num_tokens, request.num_drafts
        drafts = request.tokens[start : start + count].tolist()
        outputs, num_accepted, is_rejected = self._sample(request, rows[0], chosen, now), 0, False
        if not count:
            return outputs
        for draft, row in zip(drafts, rows[1:]):
            is_over = outputs[-1].finish_reason is not None
            is_rejected = outputs[-1].token_id is not None and outputs[-1].token_id != draft
            if is_over or is_rejected:
                break
            num_accepted += 1
            self.scheduler.advance(request, 1)
            outputs += self._sample(request, row, chosen, now)
        self.scheduler.withdraw_drafts(request)
        by_model = self.speculation.learn(request, num_accepted, is_rejected)
        self.metrics.count_drafts(request.timings, count, num_accepted, by_model=by_model)
        return outputs

    def _sample(self, request: Request, row: int, chosen: list[int], now: float) -> list[TokenOutput]:
        """Takes the next token of `request`, the chosen one or what its sampler makes of this row of logits. A second
        output ends the answer where its grammar allows no further token."""
        sampler, logprobs = request.sampler, None
        token: int | None = chosen[row]
        assert sampler is not None and token is not None
        if token != UNDECIDED:
            sampler.take(token)
            logprobs = sampler.logprobs(self._logits[row], self._maxima[row], token)
        else:
            try:
                token, logprobs = sampler.sample(self._logits[row], self._maxima[row])
            except (NumericalError, GrammarError) as error:
                if isinstance(error, NumericalError):
                    self.scheduler.forget_content(request)
                return [self._finish(request, None, "error", error=error)]
        if request.timings.first_token_s is None:
            request.timings.first_token_s = now
        if token is None:
            return [self._finish(request, None, "stop")]
        end = request.end_with(token)
        self._keep(request, token)
        if end == "stop":
            by_user = token in request.params.stop_token_ids
            return [self._finish(request, token, "stop", logprobs, token if by_user else None)]
        output = TokenOutput(request.request_id, request.index, token, logprobs)
        if sampler.matcher is not None and sampler.is_over:
            return [output, self._finish(request, None, "stop")]
        return [output if end is None else self._finish(request, token, end, logprobs)]

    def _keep(self, request: Request, token: int) -> None:
        self.metrics.generated_tokens += 1
        request.tokens[request.num_tokens] = token
        request.num_tokens += 1

    def _finish(
        self, request: Request, token: int | None, reason: FinishReason, logprobs: TokenLogprobs | None = None,
        stop_reason: int | None = None, error: QwenchError | None = None, embedding: Float32 | None = None,
    ) -> TokenOutput:  # fmt: skip
        self.scheduler.remove(request)
        timings = request.timings
        timings.finished_s = time.monotonic()
        self.adapters.end(request.adapter)
        self.metrics.finish(reason, timings, request.num_generated)
        samples = self.requests[request.request_id]
        del samples[request.index]
        if not samples:
            del self.requests[request.request_id]
        return TokenOutput(
            request.request_id, request.index, token, logprobs, reason, stop_reason, error, timings, embedding
        )

    def _fail_running(self, cause: Exception) -> list[TokenOutput]:
        is_known = isinstance(cause, QwenchError)
        logger.error(
            "the executor failed (%s); %d running requests fail with it", cause, len(self.scheduler.running),
            exc_info=cause if not is_known else None,
        )  # fmt: skip
        error = cause if isinstance(cause, QwenchError) else QwenchError(f"the step failed: {cause!r}")
        return [self._finish(request, None, "error", error=error) for request in self.scheduler.running.copy()]

    def _expire(self, latest_arrival_s: float) -> list[TokenOutput]:
        """Fails all requests that arrived before that time."""
        late = [r for samples in self.requests.values() for r in samples.values()]
        error = DeadlineError(f"the request took longer than the timeout of {self.timeout_s} seconds; give it more")
        return [
            self._finish(request, None, "error", error=error)
            for request in late
            if request.timings.arrival_s < latest_arrival_s
        ]

    def check_integrity(self) -> None:
        """Asserts that requests, queues, blocks and the batch agree; for tests."""
        self.scheduler.check_integrity()
        self._batch.check_integrity()
        known = {request for samples in self.requests.values() for request in samples.values()}
        assert known == set(self.scheduler.running) | set(self.scheduler.waiting)

    def close(self) -> None:
        """Aborts what is unfinished and closes the executor, the draft's too. Idempotent."""
        for request_id in list(self.requests):
            self.abort(request_id)
        if self.speculation.draft is not None:
            self.speculation.draft.close()
        self.executor.close()


def _salt(cache_salt: str, adapter: LoadedAdapter | None) -> bytes:
    """Of a request's first block in the prefix cache: keys and values depend on the adapter's values, not its name."""
    return cache_salt.encode() if adapter is None else adapter.digest + cache_salt.encode()
