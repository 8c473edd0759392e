"""A step's plan as arrays: the StepBatch that the executor computes, and whose rows its outputs are.

Made once by the engine and filled for every step.
"""

from __future__ import annotations

import numpy as np

from qwench.runtime.request import Request
from qwench.targets.target import StepBatch


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

    def fill(
        self, plan: dict[Request, int], *, with_adapters: bool = False
    ) -> tuple[StepBatch, list[tuple[Request, int, int]], list[tuple[Request, int]]]:
        """The batch, and which request gets which rows of its outputs, in order: (request, rows of logits for
        prompt_logprobs, rows of logits to sample from: 0 during prefill, else 1 and one per draft token), and for
        embeddings and scores (request, rows of hidden states or of logits)."""
        with_logits: list[tuple[Request, int, int]] = []
        pooled: list[tuple[Request, int]] = []
        end = num_logits = num_hidden = 0
        for s, (request, count) in enumerate(plan.items()):
            done = request.num_computed
            self.token_ids[end : end + count] = request.tokens[done : done + count]
            end += count
            self.query_start[s + 1] = end
            self.seq_lens[s] = done + count
            self.adapters[s] = -1 if request.adapter is None else request.adapter.number
            self.block_tables[s, :, : request.num_blocks] = request.block_table[:, : request.num_blocks]
            first = end - count - done  # the batch's row for position 0 of the request, which may be negative
            if request.pooler is not None:
                wanted = request.pooler.wanted(done, done + count)
                pooled.append((request, len(wanted)))
                rows = range(first + wanted.start, first + wanted.stop)
                if request.pooler.params.source == "hidden":
                    self.hidden_rows[num_hidden : num_hidden + len(rows)] = rows
                    num_hidden += len(rows)
                else:
                    self.logit_rows[num_logits : num_logits + len(rows)] = rows
                    self.top_groups[num_logits : num_logits + len(rows)] = 0
                    num_logits += len(rows)
                continue
            scored = range(0) if request.scorer is None else request.scorer.wanted(done, done + count)
            num_sampled = 1 + request.num_drafts if done + count >= request.num_tokens else 0
            top_groups = 0 if request.sampler is None else request.sampler.top_groups
            for rows, groups in (
                (range(first + scored.start, first + scored.stop), 0), (range(end - num_sampled, end), top_groups)
            ):  # fmt: skip
                self.logit_rows[num_logits : num_logits + len(rows)] = rows
                self.top_groups[num_logits : num_logits + len(rows)] = groups
                num_logits += len(rows)
            if scored or num_sampled:
                with_logits.append((request, len(scored), num_sampled))
        n = len(plan)
        batch = StepBatch(
            self.token_ids[:end], self.query_start[: n + 1], self.seq_lens[:n], self.block_tables[:n].reshape(n, -1),
            self.logit_rows[:num_logits], None, self.hidden_rows[:num_hidden] if num_hidden else None,
            self.adapters[:n] if with_adapters else None, self.top_groups[:num_logits],
        )  # fmt: skip
        return batch, with_logits, pooled
