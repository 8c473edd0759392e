"""A step's plan as arrays: the StepBatch that the executor computes, and whose rows its outputs are.

Made once by the engine and filled for every step. Where the same requests decode again, only what is new is written.
"""

from __future__ import annotations

import numpy as np

from qwench.runtime.request import Request
from qwench.targets.target import StepBatch

LogitRows = tuple[Request, int, int]  # whose, how many for prompt_logprobs, and how many to sample from


class InputBatch:
    """The arrays, made once; `fill` returns views of them, valid until the next call."""

    def __init__(
        self, max_step_tokens: int, max_num_seqs: int, num_groups: int, max_blocks: int, max_rows: int
    ) -> None:
        self.token_ids = np.empty(max_step_tokens, np.int32)
        self.query_start = np.zeros(max_num_seqs + 1, np.int32)
        self.seq_lens = np.empty(max_num_seqs, np.int32)
        self.block_tables = np.zeros((max_num_seqs, num_groups, max_blocks), np.int32)
        self.logit_rows, self.top_groups = np.empty(max_rows, np.int32), np.zeros(max_rows, np.int32)
        self.hidden_rows = np.empty(max_step_tokens, np.int32)
        self.adapters = np.empty(max_num_seqs, np.int32)
        self._rows: list[Request] = []  # whose block tables are in which row
        self._decoded: tuple[StepBatch, list[LogitRows]] | None = None  # the last batch, if each request decoded in it

    def fill(
        self, plan: dict[Request, int], *, with_adapters: bool = False
    ) -> tuple[StepBatch, list[LogitRows], list[tuple[Request, int]]]:
        """The batch, and which request gets which rows of its outputs, in order: (request, rows of logits for
        prompt_logprobs, rows of logits to sample from: 0 during prefill, else 1 and one per draft token), and for
        embeddings and scores (request, rows of hidden states or of logits)."""
        requests = list(plan)
        if self._decoded is not None and self._decode_again(requests, plan, self._decoded[0], with_adapters):
            return *self._decoded, []
        with_logits: list[LogitRows] = []
        pooled: list[tuple[Request, int]] = []
        token_ids: list[int] = []
        ends: list[int] = []
        seq_lens: list[int] = []
        logit_rows: list[int] = []
        top_groups: list[int] = []  # of each of them
        hidden_rows: list[int] = []
        end = 0
        for request, count in plan.items():
            start, done = end, request.num_computed
            end, known = start + count, done + count
            ends.append(end)
            seq_lens.append(known)
            if count == 1:
                token_ids.append(request.tokens.item(done))
            else:
                token_ids += request.tokens[done:known].tolist()
            num_scored = 0
            if request.pooler is not None:
                wanted = request.pooler.wanted(done, known)
                pooled.append((request, len(wanted)))
                rows = range(start - done + wanted.start, start - done + wanted.stop)
                if request.pooler.params.source == "hidden":
                    hidden_rows += rows
                else:
                    logit_rows += rows
                    top_groups += [0] * len(rows)
                continue
            if request.scorer is not None:
                wanted = request.scorer.wanted(done, known)
                num_scored = len(wanted)
                logit_rows += range(start - done + wanted.start, start - done + wanted.stop)
                top_groups += [0] * num_scored
            num_sampled = 0
            if known >= request.num_tokens and request.sampler is not None:
                num_sampled = 1 + request.num_drafts
                logit_rows += range(end - num_sampled, end)
                top_groups += [request.sampler.top_groups] * num_sampled
            if num_scored or num_sampled:
                with_logits.append((request, num_scored, num_sampled))
        n = len(plan)
        self._copy_block_tables(requests)
        self.token_ids[:end] = token_ids
        self.query_start[1 : n + 1] = ends
        self.seq_lens[:n] = seq_lens
        num_logits = len(logit_rows)
        self.logit_rows[:num_logits], self.top_groups[:num_logits] = logit_rows, top_groups
        self.hidden_rows[: len(hidden_rows)] = hidden_rows
        if with_adapters:
            self.adapters[:n] = [-1 if request.adapter is None else request.adapter.number for request in plan]
        batch = StepBatch(
            self.token_ids[:end], self.query_start[: n + 1], self.seq_lens[:n], self.block_tables[:n].reshape(n, -1),
            self.logit_rows[:num_logits], None, self.hidden_rows[: len(hidden_rows)] if hidden_rows else None,
            self.adapters[:n] if with_adapters else None, self.top_groups[:num_logits],
        )  # fmt: skip
        is_decoding = end == len(with_logits) == n and all(rows[1:] == (0, 1) for rows in with_logits)
        self._decoded = (batch, with_logits) if is_decoding else None
        return batch, with_logits, pooled

    def _decode_again(
        self, requests: list[Request], plan: dict[Request, int], last: StepBatch, with_adapters: bool
    ) -> bool:
        """Whether these requests all decoded in the last batch, and do so once more; then it is made this step's."""
        if requests != self._rows or sum(plan.values()) > len(requests):
            return False
        if with_adapters != (last.adapters is not None):
            return False
        token_ids: list[int] = []
        seq_lens: list[int] = []
        for row, request in enumerate(requests):
            known = request.num_tokens
            if request.num_computed + 1 != known:
                return False
            token_ids.append(request.tokens.item(known - 1))
            seq_lens.append(known)
            if request.has_new_blocks:
                self._copy_block_table(row, request)
        last.token_ids[:] = token_ids
        last.seq_lens[:] = seq_lens
        return True

    def _copy_block_tables(self, requests: list[Request]) -> None:
        """Those of requests that had another row in the last step, or got blocks since."""
        before, self._rows = self._rows, requests
        for s, request in enumerate(requests):
            if request.has_new_blocks or s >= len(before) or request is not before[s]:
                self._copy_block_table(s, request)

    def _copy_block_table(self, row: int, request: Request) -> None:
        held = request.num_blocks
        self.block_tables[row, :, :held] = request.block_table[:, :held]
        request.has_new_blocks = False

    def check_integrity(self) -> None:
        """Asserts that rows of block tables which weren't copied anew are right all the same; for tests."""
        for row, request in zip(self.block_tables, self._rows):
            if request.is_running and not request.has_new_blocks:
                for group, first in enumerate(request.first_block):
                    held = slice(first, request.num_blocks)
                    assert np.array_equal(row[group, held], request.block_table[group, held])
