"""Which requests an engine can serve: the model's limits, and the check of a request against them.

Called by the engine for each request, and by the server's HTTP process, which can refuse a request while the engine is
in a long step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwench.checkpoint.heads import LANGUAGE_MODEL, HeadSpec, why_silent
from qwench.errors import RequestError
from qwench.program.cache_groups import most_blocks
from qwench.runtime.pooling import Source
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.targets.target import Int32


@dataclass(frozen=True)
class RequestLimits:
    """max_seq_len: tokens of a sequence, prompt and answer; its cache: num_blocks blocks of block_size positions.

    max_step_tokens: computed in one step at most. windows: of each cache group. head: what the model ends with.
    is_causal: False: a prompt is computed in one step, because each token sees those behind it.
    """

    vocab_size: int
    max_seq_len: int
    block_size: int
    num_blocks: int
    max_step_tokens: int
    windows: tuple[int | None, ...] = (None,)
    head: HeadSpec = LANGUAGE_MODEL
    is_causal: bool = True

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RequestLimits:
        """Inverse of `dataclasses.asdict`, by way of JSON too."""
        return cls(**{**data, "windows": tuple(data["windows"]), "head": HeadSpec(**data["head"])})

    def check(self, prompt_token_ids: Sequence[int] | Int32, params: SamplingParams) -> tuple[Int32, int]:
        """The prompt as [n] int32, and the most tokens its sequence may have. Raises RequestError."""
        if reason := why_silent(self.head, self.is_causal):
            raise RequestError(reason)
        if len(prompt_token_ids) >= self.max_seq_len:  # before a long list becomes an array
            raise self._too_long(len(prompt_token_ids), params)
        ids = self._token_ids(prompt_token_ids)
        for name, tokens in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            if any(token >= self.vocab_size for token in tokens):
                raise RequestError(f"{name} names tokens beyond the vocabulary of {self.vocab_size}")
        length, wanted = len(ids), params.max_tokens
        if length + (wanted or 1) > self.max_seq_len:
            raise self._too_long(length, params)
        max_len = length + wanted if wanted else self.max_seq_len
        # The last token is never computed.
        needed = most_blocks(self.windows, max_len - 1, self.block_size, self.max_step_tokens)
        if needed > self.num_blocks:
            raise RequestError(
                f"up to {max_len} tokens need {needed} cache blocks and there are {self.num_blocks}; lower "
                "max_tokens, shorten the prompt or raise kvcache_num_blocks"
            )
        return ids, max_len

    def check_pooled(self, prompt_token_ids: Sequence[int] | Int32, source: Source) -> Int32:
        """The prompt of a request for an embedding or for scores as [n] int32. Raises RequestError."""
        if source == "scores" and not self.head.is_classifier:
            raise RequestError(
                "this model has no classification head, so it gives no scores of its own; it gives embeddings"
            )
        length = len(prompt_token_ids)
        if length > self.max_seq_len:
            raise RequestError(
                f"the input has {length} tokens, more than the {self.max_seq_len} the model was compiled for; shorten "
                "it or compile with a larger max_seq_len"
            )
        if not self.is_causal and length > self.max_step_tokens:
            raise RequestError(
                f"the input has {length} tokens, and bidirectional attention reads all of an input in one step, which "
                f"has at most {self.max_step_tokens}; shorten it or compile with a larger prefill_chunk_size"
            )
        needed = most_blocks(self.windows, length, self.block_size, self.max_step_tokens)
        if needed > self.num_blocks:
            raise RequestError(
                f"{length} tokens need {needed} cache blocks and there are {self.num_blocks}; shorten the input or "
                "raise kvcache_num_blocks"
            )
        return self._token_ids(prompt_token_ids)

    def _token_ids(self, given: Sequence[int] | Int32) -> Int32:
        ids = np.asarray(given)
        if ids.ndim != 1 or len(ids) == 0:
            raise RequestError("the prompt is empty; give at least one token")
        if ids.dtype.kind not in "iu" or int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size:
            raise RequestError(f"the prompt holds something that isn't a token id from 0 to {self.vocab_size - 1}")
        return ids.astype(np.int32)

    def _too_long(self, length: int, params: SamplingParams) -> RequestError:
        answer = "the first new one" if params.max_tokens is None else f"max_tokens {params.max_tokens}"
        return RequestError(
            f"the prompt has {length} tokens; with {answer} that is more than the {self.max_seq_len} the model "
            "was compiled for; shorten the prompt, lower max_tokens or compile with a larger max_seq_len"
        )
