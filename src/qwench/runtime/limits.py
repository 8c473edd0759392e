"""Which requests an engine can serve: the model's limits, and the check of a request against them.

Called by the engine for each request, and by the server's HTTP process, which can refuse a request while the engine is
in a long step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwench.errors import RequestError
from qwench.program.cache_groups import most_blocks
from qwench.runtime.sampling_params import SamplingParams
from qwench.targets.target import Int32


@dataclass(frozen=True)
class RequestLimits:
    """max_seq_len: tokens of a sequence, prompt and answer; its cache: num_blocks blocks of block_size positions.

    max_step_tokens: computed in one step at most. windows: of each cache group.
    """

    vocab_size: int
    max_seq_len: int
    block_size: int
    num_blocks: int
    max_step_tokens: int
    windows: tuple[int | None, ...] = (None,)

    def check(self, prompt_token_ids: Sequence[int] | Int32, params: SamplingParams) -> tuple[Int32, int]:
        """The prompt as [n] int32, and the most tokens its sequence may have. Raises RequestError."""
        if len(prompt_token_ids) >= self.max_seq_len:  # before a long list becomes an array
            raise self._too_long(len(prompt_token_ids), params)
        ids = np.asarray(prompt_token_ids)
        if ids.ndim != 1 or len(ids) == 0:
            raise RequestError("the prompt is empty; give at least one token")
        if ids.dtype.kind not in "iu" or int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size:
            raise RequestError(f"the prompt holds something that isn't a token id from 0 to {self.vocab_size - 1}")
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
        return ids.astype(np.int32), max_len

    def _too_long(self, length: int, params: SamplingParams) -> RequestError:
        answer = "the first new one" if params.max_tokens is None else f"max_tokens {params.max_tokens}"
        return RequestError(
            f"the prompt has {length} tokens; with {answer} that is more than the {self.max_seq_len} the model "
            "was compiled for; shorten the prompt, lower max_tokens or compile with a larger max_seq_len"
        )
