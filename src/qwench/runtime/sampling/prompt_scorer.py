"""prompt_logprobs: the log-probabilities of a prompt's tokens, collected over the steps that compute it.

Made by the engine for a request that asks for them; the scheduler asks it how many rows of logits a step needs.
"""

from __future__ import annotations

import numpy as np

from qwench.errors import NumericalError
from qwench.runtime.outputs import TokenLogprobs
from qwench.runtime.sampling.sampler import log_probabilities
from qwench.targets.target import Float32, Int32


class PromptScorer:
    """Takes the logits after each token of `prompt` [n] int32 but the last, in order. When a preempted prompt is
    computed again, only logits that are still missing are taken.

    logprobs: TokenLogprobs of the tokens so far; None for the first, which follows nothing.
    """

    def __init__(self, prompt: Int32, num_top: int) -> None:
        self._prompt, self._num_top = prompt, num_top
        self.logprobs: list[TokenLogprobs | None] = [None]

    def wanted(self, start: int, stop: int) -> range:
        """The positions from `start` to `stop` whose logits `add` needs."""
        first = max(start, len(self.logprobs) - 1)
        return range(first, max(first, min(stop, len(self._prompt) - 1)))

    def limit(self, start: int, count: int, num_rows: int) -> int:
        """How many of `count` tokens from `start` on a step can compute with `num_rows` rows of logits."""
        wanted = self.wanted(start, start + count)
        return count if len(wanted) <= num_rows else wanted.start + num_rows - start

    def add(self, logits: Float32, maxima: Float32) -> None:
        """logits: [n, vocab_size] of the positions that were `wanted`; maxima: of each LOGIT_GROUP of them.

        Raises NumericalError for NaN or infinite ones.
        """
        for row, top in zip(logits, maxima.max(axis=1).tolist(), strict=True):
            if not np.isfinite(top):
                raise NumericalError(f"the model produced {top} as a logit; is the checkpoint sound?")
            token = int(self._prompt[len(self.logprobs)])
            self.logprobs.append(log_probabilities(row, top, token, self._num_top))
