"""Which requests compute how many tokens in the next step.

There is no prefill phase and no decode phase: each request has num_computed tokens and catches up with num_tokens,
within a budget of tokens per step. Running requests go first, those one token short before the rest; what is left
goes to waiting ones in the order of arrival. When blocks run out, the latest arrival gives up its blocks and computes
them again later. The oldest request is never held up by a younger one, so that each ends. Guesses come last: they get
what budget and blocks are left over, and give back the blocks of those that were wrong.

Knows nothing of logits or text; called by the engine, between whose steps it is always consistent.
"""

from __future__ import annotations

import bisect
import time
from collections import deque

from qwench.runtime.block_pool import BlockPool, block_hash
from qwench.runtime.metrics import Metrics
from qwench.runtime.request import Request

MAX_STEP_DRAFTS = 32  # each needs a row of logits
# What a further token adds to a step, in steps of one token. Measured on two cores at 0.05 to 0.08 (0.5B, all formats);
# a little more than it is, so that a guess that doesn't pay is rather left out.
_TOKEN_COST = 0.1


class Scheduler:
    """Owns the waiting and the running requests, both in order of arrival, and the blocks that they hold."""

    def __init__(
        self, pool: BlockPool, block_size: int, max_num_seqs: int, max_step_tokens: int, reuse: bool, metrics: Metrics
    ) -> None:
        self.pool, self.block_size = pool, block_size
        self.max_num_seqs, self.max_step_tokens, self.reuse = max_num_seqs, max_step_tokens, reuse
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.metrics = metrics

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def schedule(self) -> dict[Request, int]:
        """Request -> how many of its tokens the next step computes, at least 1, the last `num_drafts` of them guesses;
        blocks for them are held."""
        for request in self.running:
            if request.num_drafts:  # the last step was interrupted
                self.withdraw_drafts(request)
        plan: dict[Request, int] = {}
        budget, preempted = self.max_step_tokens, False
        for decodes in (True, False):
            for request in self.running.copy():
                pending = request.num_tokens - request.num_computed
                if budget == 0:
                    break
                if (pending == 1) != decodes or not request.is_running:
                    continue
                count = min(pending, budget)
                needed = self._blocks_for(request.num_computed + count) - request.num_blocks
                while needed > self.pool.num_free and request.is_running:
                    victim = self.running[-1]
                    budget += plan.pop(victim, 0)
                    self._preempt(victim)
                    preempted = True
                if request.is_running:
                    self._grow(request, needed)
                    plan[request] = count
                    budget -= count
        if not preempted:
            budget = self._admit(plan, budget)
        if any(request.lookup is not None for request in plan):
            self._draft(plan, budget)
        return plan

    def _admit(self, plan: dict[Request, int], budget: int) -> int:
        """Lets waiting requests in, in order of arrival, while budget, places and blocks for all their tokens last.
        Returns the budget that is left."""
        followers = []
        while self.waiting and budget and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            if self._waits_for_leader(request):
                followers.append(self.waiting.popleft())
                continue
            shared = self._cached_prefix(request)
            needed = self._blocks_for(request.num_tokens) - len(shared)
            if needed > self.pool.num_free - self.pool.num_free_among(shared):
                break
            self.waiting.popleft()
            self._start(request, shared)
            count = min(request.num_tokens - request.num_computed, budget)
            self._grow(request, self._blocks_for(request.num_computed + count) - request.num_blocks)
            plan[request] = count
            budget -= count
        self.waiting.extendleft(reversed(followers))
        return budget

    def _draft(self, plan: dict[Request, int], budget: int) -> None:
        """Adds guesses to requests that get a token from this step, each while it raises the tokens per second that
        the step can be expected to give."""
        expected = float(sum(plan.values()))
        cost = 1 + _TOKEN_COST * (expected - 1)
        budget = min(budget, MAX_STEP_DRAFTS)
        for request, count in plan.items():
            end = request.num_tokens
            if request.lookup is None or request.num_computed + count < end:
                continue
            room = (request.num_blocks + self.pool.num_free) * self.block_size
            limit = min(budget, request.params.prompt_lookup_num_tokens, room - end, request.max_len - end - 1)
            num_drafts = 0
            for token, probability in request.lookup.propose(end, limit):
                if probability * cost <= _TOKEN_COST * expected or token in request.stop_tokens:
                    break
                request.tokens[end + num_drafts] = token
                expected, cost, num_drafts = expected + probability, cost + _TOKEN_COST, num_drafts + 1
            if num_drafts:
                self._grow(request, self._blocks_for(end + num_drafts) - request.num_blocks)
                request.num_drafts = num_drafts
                plan[request] = count + num_drafts
                budget -= num_drafts

    def withdraw_drafts(self, request: Request) -> None:
        """What is left of the guesses is forgotten; blocks that only they needed are free again."""
        request.num_drafts, kept = 0, self._blocks_for(request.num_tokens)
        if kept < request.num_blocks:
            self.pool.release(request.block_table[kept : request.num_blocks].tolist())
            request.num_blocks = kept

    def advance(self, request: Request, count: int) -> None:
        """`count` more known tokens of the request are in the cache; its full blocks can be found again."""
        request.num_computed += count
        if self.reuse:
            full = request.num_computed // self.block_size
            if full > request.num_registered:
                self._register(request, full)

    def remove(self, request: Request) -> None:
        """Forgets a request, waiting or running, and lets go of its blocks."""
        if request.is_running:
            self._stop(request)
        else:
            self.waiting.remove(request)

    def forget_content(self, request: Request) -> None:
        """The request's keys and values are broken: no other request may find them."""
        self.pool.forget(request.block_table[: request.num_blocks].tolist())

    def _start(self, request: Request, shared: list[int]) -> None:
        self.pool.acquire(shared)
        request.block_table[: len(shared)] = shared
        request.num_blocks = request.num_registered = len(shared)
        request.num_computed = len(shared) * self.block_size
        request.is_running = True
        bisect.insort(self.running, request, key=lambda r: r.arrival)
        timings = request.timings
        if timings.scheduled_s is None:
            timings.scheduled_s = time.monotonic()
            timings.num_cached_tokens = request.num_computed
            self.metrics.prompt_tokens += request.num_prompt
            self.metrics.cached_prompt_tokens += request.num_computed

    def _stop(self, request: Request) -> None:
        self.running.remove(request)
        self.pool.release(request.block_table[: request.num_blocks].tolist())
        request.is_running = False
        request.num_blocks = request.num_registered = request.num_computed = request.num_drafts = 0

    def _preempt(self, request: Request) -> None:
        """Back among the waiting, at its place by arrival; its tokens stay, its keys and values go."""
        self._stop(request)
        place = 0
        while place < len(self.waiting) and self.waiting[place].arrival < request.arrival:
            place += 1
        self.waiting.insert(place, request)
        request.timings.num_preemptions += 1
        self.metrics.preemptions += 1

    def _grow(self, request: Request, count: int) -> None:
        if count > 0:
            held = request.num_blocks
            request.block_table[held : held + count] = self.pool.allocate(count)
            request.num_blocks += count

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _waits_for_leader(self, request: Request) -> bool:
        leader = request.leader
        if leader is None:
            return False
        if leader.num_computed >= leader.num_prompt or leader.timings.finished_s is not None:
            request.leader = None
            return False
        return True

    def _cached_prefix(self, request: Request) -> list[int]:
        """Held or free blocks that hold the start of the request; its last token is always computed, for logits."""
        if not self.reuse:
            return []
        self._hash_blocks(request, request.num_tokens // self.block_size)
        return self.pool.lookup(request.block_hashes[: (request.num_tokens - 1) // self.block_size])

    def _hash_blocks(self, request: Request, count: int) -> None:
        hashes, size = request.block_hashes, self.block_size
        for i in range(len(hashes), count):
            parent = hashes[-1] if hashes else request.salt
            hashes.append(block_hash(parent, request.tokens[i * size : (i + 1) * size]))

    def _register(self, request: Request, full: int) -> None:
        self._hash_blocks(request, full)
        for i in range(request.num_registered, full):
            self.pool.register(int(request.block_table[i]), request.block_hashes[i])
        request.num_registered = full

    def check_integrity(self) -> None:
        """Asserts that pool, tables and counts agree; for tests."""
        self.pool.check_integrity([r.block_table[: r.num_blocks].tolist() for r in self.running])
        assert len(self.running) <= self.max_num_seqs
        for queue, running in ((self.running, True), (self.waiting, False)):
            arrivals = [r.arrival for r in queue]
            assert arrivals == sorted(set(arrivals))
            assert all(r.is_running == running for r in queue)
        for r in self.running:
            assert r.num_computed < r.num_tokens <= r.max_len
            most = self._blocks_for(r.num_tokens + r.num_drafts)  # guesses are left when a step was interrupted
            assert self._blocks_for(r.num_computed) <= r.num_blocks <= most
            assert r.num_registered == (r.num_computed // self.block_size if self.reuse else 0)
            assert len(r.block_hashes) <= r.num_tokens // self.block_size
        for r in self.waiting:
            assert r.num_computed == r.num_blocks == r.num_registered == r.num_drafts == 0
