"""Request: one sample of a user's request while it runs. Made by the engine, scheduled by the scheduler."""

from __future__ import annotations

import numpy as np

from qwench.runtime.adapters import LoadedAdapter
from qwench.runtime.outputs import FinishReason, RequestTimings
from qwench.runtime.pooling import Pooler
from qwench.runtime.sampling.prompt_scorer import PromptScorer
from qwench.runtime.sampling.sampler import TokenSampler
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.runtime.spec_decode.following import Following
from qwench.runtime.spec_decode.prompt_lookup import PromptLookup
from qwench.targets.target import Int32


class Request:
    """One sample, waiting or running.

    tokens: [max_len] int32; the first num_tokens are known (prompt, then answer), and the first num_computed of them
        have keys and values in the cache. During a step num_drafts draft tokens follow the known ones.
    block_table: [num_groups, blocks of max_len] int32: in the row of each cache group the entries from
        first_block[group] to num_blocks are valid; blocks before lie behind the group's window and were freed.
        has_new_blocks: since it was last copied to a step's batch.
    block_hashes: of the full blocks of known tokens, in order; the first num_registered were put into the prefix cache.
    salt: parent of the first block's hash. arrival: place in the order of arrival.
    leader: the first sample of the same prompt; this one waits until it can share its blocks.
    lookup: proposes draft tokens; None without prompt lookup.
    following: how far a draft model has come with it; None without one, and before it first guesses here.
    adapter: the LoRA adapter that it is computed with; None for the model itself.
    pooler: collects the embedding of a request for one; None for generation.
    scorer: collects prompt_logprobs; None if they weren't asked for, or sample 0 has it.
    """

    __slots__ = (
        "adapter", "arrival", "block_hashes", "block_table", "first_block", "following", "has_new_blocks", "index",
        "is_running", "leader", "lookup", "max_len", "num_blocks", "num_computed", "num_drafts", "num_prompt",
        "num_registered", "num_tokens", "params", "pooler", "request_id", "salt", "sampler", "scorer", "stop_tokens",
        "timings", "tokens",
    )  # fmt: skip

    def __init__(
        self, request_id: str, index: int, prompt: Int32, params: SamplingParams, max_len: int, *, arrival: int,
        arrival_s: float, salt: bytes, num_groups: int, block_size: int,
    ) -> None:  # fmt: skip
        self.request_id, self.index, self.params, self.max_len = request_id, index, params, max_len
        self.num_prompt = self.num_tokens = len(prompt)
        self.tokens: Int32 = np.empty(max_len, np.int32)
        self.tokens[: self.num_prompt] = prompt
        self.num_computed = self.num_blocks = self.num_registered = self.num_drafts = 0
        self.block_table: Int32 = np.zeros((num_groups, -(-max_len // block_size)), np.int32)
        self.first_block = [0] * num_groups
        self.block_hashes: list[bytes] = []
        self.salt, self.arrival, self.timings = salt, arrival, RequestTimings(arrival_s)
        self.is_running = self.has_new_blocks = False
        self.leader: Request | None = None
        self.lookup = PromptLookup(self.tokens) if params.prompt_lookup_num_tokens else None
        self.following: Following | None = None
        self.stop_tokens: frozenset[int] = frozenset()
        self.adapter: LoadedAdapter | None = None
        self.sampler: TokenSampler | None = None
        self.pooler: Pooler | None = None
        self.scorer: PromptScorer | None = None

    @property
    def num_generated(self) -> int:
        return self.num_tokens - self.num_prompt

    def end_with(self, token: int) -> FinishReason | None:
        """Why this next token ends the answer, its grammar aside; None: it goes on."""
        if token in self.stop_tokens:
            return "stop"
        return "length" if self.num_tokens + 1 == self.max_len else None
