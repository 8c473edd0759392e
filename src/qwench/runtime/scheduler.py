"""Continuous batching: which requests compute how many tokens in the next step.

There is no prefill phase and no decode phase: each request has num_computed tokens and catches up with num_tokens,
within a token budget per step. Running requests go first, those that decode before those that read a prompt; what is
left goes to waiting ones, first come, first served. When blocks run out, the latest arrival is preempted: its blocks
are freed and computed again later. No request is ever preempted for a younger one, so every request ends. Draft tokens,
which `runtime/spec_decode/` adds, get the budget and the blocks that are left over; the blocks of rejected ones are
freed.

In cache groups with a sliding window, blocks behind the window are freed as the request moves on.

Deals with tokens and blocks, not with logits or text. Called by the engine.
"""

from __future__ import annotations

import bisect
import time
from collections import deque
from collections.abc import Callable, Sequence

from qwench.program.cache_groups import first_position, most_blocks
from qwench.runtime.block_pool import BlockPool, extend_hashes
from qwench.runtime.metrics import Metrics
from qwench.runtime.request import Request

MAX_EXTRA_ROWS = 32  # rows of logits in a step beside one per sequence: for draft tokens and prompt_logprobs


class Scheduler:
    """Owns the waiting and the running requests, both in order of arrival, and the blocks that they hold."""

    def __init__(
        self, pool: BlockPool, block_size: int, max_num_seqs: int, max_step_tokens: int,
        enable_prefix_caching: bool, metrics: Metrics, windows: Sequence[int | None] = (None,),
        whole_prompts: bool = False,
    ) -> None:  # fmt: skip
        """windows: the sliding window of each cache group. whole_prompts: none is cut into several steps."""
        self.pool, self.block_size, self.windows = pool, block_size, tuple(windows)
        self._sliding = [(group, window) for group, window in enumerate(windows) if window is not None]
        self.max_num_seqs, self.max_step_tokens = max_num_seqs, max_step_tokens
        self.enable_prefix_caching, self.whole_prompts = enable_prefix_caching, whole_prompts
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.metrics = metrics
        self.rows_left = MAX_EXTRA_ROWS  # of them, in the step that is planned

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def schedule(self) -> dict[Request, int]:
        """Request -> how many of its tokens the next step computes, at least 1. Blocks for all of them are allocated;
        `Speculation` adds draft tokens."""
        decoding: list[Request] = []
        reading: list[Request] = []
        for request in self.running:
            if request.num_drafts:  # the last step raised
                self.withdraw_drafts(request)
            (decoding if request.num_tokens - request.num_computed == 1 else reading).append(request)
        plan: dict[Request, int] = {}
        budget, num_preempted = self.max_step_tokens, self.metrics.preemptions
        self.rows_left = MAX_EXTRA_ROWS
        for request in decoding + reading:
            if budget == 0:
                break
            if not request.is_running:
                continue
            done = request.num_computed
            count = request.num_tokens - done
            if count > budget:
                count = budget
            if request.scorer is not None and (count := self._take_rows(request, count)) == 0:
                continue
            if done + count > request.num_blocks * self.block_size:
                budget += self._make_room(request, done + count, plan)
                if not request.is_running:
                    continue
            plan[request] = count
            budget -= count
        if self.metrics.preemptions == num_preempted:
            self._admit(plan, budget)
        return plan

    def _make_room(self, request: Request, num_tokens: int, plan: dict[Request, int]) -> int:
        """Gives a request blocks for so many tokens; others, and at last itself, are preempted for it. Returns how many
        tokens the plan lost thereby."""
        growth, lost = self._blocks_for(num_tokens) - request.num_blocks, 0
        while growth * len(self.windows) > self.pool.num_free and request.is_running:
            victim = self.running[-1]
            lost += plan.pop(victim, 0)
            self._preempt(victim)
        if request.is_running:
            self._grow(request, growth)
        return lost

    def _take_rows(self, request: Request, count: int) -> int:
        """How many of the next `count` tokens of the request this step can compute: with prompt_logprobs each needs one
        of the rows of logits that are left."""
        scorer, done = request.scorer, request.num_computed
        if scorer is None:
            return count
        count = scorer.limit(done, count, self.rows_left)
        self.rows_left -= len(scorer.wanted(done, done + count))
        return count

    def _admit(self, plan: dict[Request, int], budget: int) -> None:
        """Starts waiting requests in order of arrival, while the budget, max_num_seqs and the free blocks allow it."""
        followers = []
        while self.waiting and budget and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            if self._waits_for_leader(request):
                followers.append(self.waiting.popleft())
                continue
            if request.scorer is not None and self.rows_left == 0:
                break
            if self.whole_prompts and request.num_tokens > budget:
                break
            length, shared = self._cached_prefix(request)
            held = [block for blocks in shared for block in blocks]
            needed = self.most_blocks(request.num_tokens) - len(held)
            if needed > self.pool.num_free - self.pool.num_free_among(held):
                break
            self.waiting.popleft()
            self._start(request, length, shared)
            count = self._take_rows(request, min(request.num_tokens - request.num_computed, budget))
            self._grow(request, self._blocks_for(request.num_computed + count) - request.num_blocks)
            plan[request] = count
            budget -= count
        self.waiting.extendleft(reversed(followers))

    def room_for_drafts(self, request: Request, limit: int) -> int:
        """How many draft tokens, up to `limit`, could follow the known ones: preempting nobody, within the context."""
        end = request.num_tokens
        room = (request.num_blocks + self.pool.num_free // len(self.windows)) * self.block_size
        return min(limit, room - end, request.max_len - end - 1)

    def reserve_drafts(self, request: Request, count: int) -> None:
        """So many draft tokens follow the known ones, with blocks for them."""
        self._grow(request, self._blocks_for(request.num_tokens + count) - request.num_blocks)
        request.num_drafts = count

    def keep_drafts(self, request: Request, count: int) -> None:
        """The first `count` draft tokens stay; blocks that only the others needed are freed."""
        request.num_drafts, kept = count, self._blocks_for(request.num_tokens + count)
        if kept < request.num_blocks:
            self.pool.release(request.block_table[:, kept : request.num_blocks].ravel().tolist())
            request.num_blocks = kept

    def withdraw_drafts(self, request: Request) -> None:
        """Drops the draft tokens that were not accepted, and frees the blocks that only they needed."""
        self.keep_drafts(request, 0)

    def most_blocks(self, num_tokens: int) -> int:
        """The most blocks that a request of up to `num_tokens` tokens holds at once."""
        return most_blocks(self.windows, num_tokens, self.block_size, self.max_step_tokens)

    def advance_all(self, plan: dict[Request, int]) -> None:
        """`advance` for a step that is computed, by all of its tokens but the drafts."""
        size = self.block_size
        for request, count in plan.items():
            done = request.num_computed + count - request.num_drafts
            if done >= (request.num_registered + 1) * size or self._sliding:
                self.advance(request, done - request.num_computed)
            else:
                request.num_computed = done

    def advance(self, request: Request, count: int) -> None:
        """`count` more tokens of the request are in the cache: its full blocks join the prefix cache, and those behind
        a sliding window are freed."""
        request.num_computed += count
        if self.enable_prefix_caching and request.num_computed >= (request.num_registered + 1) * self.block_size:
            self._register(request, request.num_computed // self.block_size)
        for group, window in self._sliding:
            first = first_position(window, request.num_computed) // self.block_size
            if (held := request.first_block[group]) < first:
                self.pool.release(request.block_table[group, held:first].tolist())
                request.first_block[group] = first

    def remove(self, request: Request) -> None:
        """Removes a request, waiting or running, and frees its blocks."""
        if request.is_running:
            self._stop(request)
        else:
            self.waiting.remove(request)

    def forget_content(self, request: Request) -> None:
        """Takes the request's blocks out of the prefix cache, because their keys and values are not finite."""
        for group in range(len(self.windows)):
            self.pool.forget(_group_hash(block_hash, group) for block_hash in request.block_hashes)

    def _start(self, request: Request, length: int, shared: list[list[int]]) -> None:
        """Runs the request, with its first `length` blocks cached; each group needs the last of them, `shared`."""
        request.first_block = [length - len(blocks) for blocks in shared]
        for group, blocks in enumerate(shared):
            self.pool.acquire(blocks)
            request.block_table[group, length - len(blocks) : length] = blocks
        request.num_blocks = request.num_registered = length
        request.num_computed = length * self.block_size
        request.is_running = request.has_new_blocks = True
        bisect.insort(self.running, request, key=lambda r: r.arrival)
        timings = request.timings
        if timings.scheduled_s is None:
            timings.scheduled_s = time.monotonic()
            timings.num_cached_tokens = request.num_computed
            self.metrics.prompt_tokens += request.num_prompt
            self.metrics.cached_prompt_tokens += request.num_computed

    def _stop(self, request: Request) -> None:
        self.running.remove(request)
        for blocks in self._held(request):
            self.pool.release(blocks)
        request.is_running = False
        request.num_blocks = request.num_registered = request.num_computed = request.num_drafts = 0
        if request.following is not None:
            request.following.num_computed = None
        request.first_block = [0] * len(self.windows)

    def _held(self, request: Request) -> list[list[int]]:
        """The blocks of the request in each group."""
        rows = zip(request.block_table, request.first_block, strict=True)
        return [row[first : request.num_blocks].tolist() for row, first in rows]

    def _preempt(self, request: Request) -> None:
        """Puts the request back into the waiting queue, by arrival; it keeps its tokens and loses its blocks."""
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
            for row in request.block_table:
                row[held : held + count] = self.pool.allocate(count)
            request.num_blocks += count
            request.has_new_blocks = True

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

    def _cached_prefix(self, request: Request) -> tuple[int, list[list[int]]]:
        """`find` for the blocks of a request. Its last token is always computed, for logits."""
        if not self.enable_prefix_caching:
            return 0, [[]] * len(self.windows)
        self._hash_blocks(request, request.num_tokens // self.block_size)
        return self.find(request.block_hashes[: (request.num_tokens - 1) // self.block_size])

    def find(self, hashes: Sequence[bytes]) -> tuple[int, list[list[int]]]:
        """The longest prefix of these blocks that is in the cache: its length, and the blocks of it that each group
        needs to continue from there."""
        length, tried = len(hashes), -1
        while tried != length:  # until all groups agree
            tried = length
            for group, window in enumerate(self.windows):
                length = self._cached_length(hashes[:length], group, window)
        return length, [
            self.pool.lookup([_group_hash(h, group) for h in hashes[self._first_block(window, length) : length]])
            for group, window in enumerate(self.windows)
        ]

    def insert(self, hashes: Sequence[bytes], firsts: Sequence[int], fill: Callable[[int, int, int], None]) -> None:
        """Puts blocks into the cache that no request computed: those of `hashes`, in each group from its first one on.

        fill(group, index, block): writes the content of block `index` of the prefix; not called for blocks that are
        cached already. There must be free blocks for all of them.
        """
        for group, first in enumerate(firsts):
            chain: list[int] = []
            for index in range(first, len(hashes)):
                block_hash = _group_hash(hashes[index], group)
                found = self.pool.lookup([block_hash])
                if found:
                    self.pool.acquire(found)
                else:
                    found = self.pool.allocate(1)
                    fill(group, index, found[0])
                    self.pool.register(found[0], block_hash)
                chain += found
            self.pool.release(chain)

    def _cached_length(self, hashes: Sequence[bytes], group: int, window: int | None) -> int:
        """The longest prefix of `hashes` after which a group can continue, with all blocks in its window cached."""
        if window is None:
            return len(self.pool.lookup([_group_hash(block_hash, group) for block_hash in hashes]))
        length = at = len(hashes)
        while at > self._first_block(window, length):
            at -= 1
            if _group_hash(hashes[at], group) not in self.pool:
                length = at
        return length

    def _first_block(self, window: int | None, num_blocks: int) -> int:
        """The first block that is needed after `num_blocks` full ones."""
        return first_position(window, num_blocks * self.block_size) // self.block_size

    def _hash_blocks(self, request: Request, count: int) -> None:
        extend_hashes(request.block_hashes, request.salt, request.tokens, self.block_size, count)

    def _register(self, request: Request, full: int) -> None:
        self._hash_blocks(request, full)
        for group, row in enumerate(request.block_table):
            for i in range(request.num_registered, full):
                self.pool.register(int(row[i]), _group_hash(request.block_hashes[i], group))
        request.num_registered = full

    def check_integrity(self) -> None:
        """Asserts that pool, tables and counts agree; for tests."""
        self.pool.check_integrity([blocks for r in self.running for blocks in self._held(r)])
        assert len(self.running) <= self.max_num_seqs
        for queue, running in ((self.running, True), (self.waiting, False)):
            arrivals = [r.arrival for r in queue]
            assert arrivals == sorted(set(arrivals))
            assert all(r.is_running == running for r in queue)
        for r in self.running:
            assert r.num_computed < r.num_tokens <= r.max_len
            most = self._blocks_for(r.num_tokens + r.num_drafts)  # drafts are left over when a step raised
            assert self._blocks_for(r.num_computed) <= r.num_blocks <= most
            assert r.num_registered == (r.num_computed // self.block_size if self.enable_prefix_caching else 0)
            assert len(r.block_hashes) <= r.num_tokens // self.block_size
            assert sum(map(len, self._held(r))) <= self.most_blocks(r.num_tokens + r.num_drafts)
            assert r.first_block == [first_position(w, r.num_computed) // self.block_size for w in self.windows]
        for r in self.waiting:
            assert r.num_computed == r.num_blocks == r.num_registered == r.num_drafts == 0


def _group_hash(block_hash: bytes, group: int) -> bytes:
    """The hash of a block in one cache group: each group has a block of its own for the same tokens."""
    return block_hash + group.to_bytes(2, "little") if group else block_hash
