"""A compiled model as comparisons need it: logits of every token of a sequence, and greedy answers of the engine.

Knows nothing of truths and metrics. Called by `verify.py`, `perplexity.py` and `book.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from qwench.artifact.artifact import Artifact
from qwench.checkpoint.heads import why_silent
from qwench.errors import ConfigError
from qwench.evaluate.batches import chunks, num_blocks
from qwench.program.cache_groups import cache_groups
from qwench.runtime.loading import load_engine, load_executor
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.targets.target import CacheConfig, Executor, Float32, Int32


class CompiledModel:
    """An artifact of a language model on its target. Use it in a `with`, or `close()` it. Raises ConfigError for one of
    another model."""

    def __init__(self, artifact: Artifact, num_threads: int) -> None:
        spec = artifact.program.spec
        if reason := why_silent(spec.head, spec.is_causal):
            raise ConfigError(f"{reason}, and what is judged here are the logits of a next token")
        self.artifact, self.num_threads = artifact, num_threads
        self._executor: Executor | None = None
        self._room = 0  # positions that the executor's cache holds

    def run(self, token_ids: Int32) -> tuple[Float32, Float32]:
        """Logits [num_tokens, vocab_size] and hidden states [num_layers + 1, num_tokens, hidden_size] of a prompt.

        In steps of at most prefill_chunk_size tokens. The states are the residual stream before each layer and, the
        last, after the final norm.
        """
        spec = self.artifact.program.spec
        hidden = np.empty((spec.num_layers + 1, len(token_ids), spec.hidden_size), np.float32)
        logits = np.empty((len(token_ids), spec.vocab_size), np.float32)
        for begin, batch in chunks(token_ids, self._block_size, self.artifact.plan.max_step_tokens, self._num_groups):
            rows = slice(begin, begin + len(batch.token_ids))
            every = replace(batch, hidden_rows=batch.logit_rows)
            self._executor_for(len(token_ids)).step(every, logits[rows], hidden[:, rows])
        return logits, hidden

    def logit_rows(self, token_ids: Int32, first: int = 0) -> Iterator[tuple[int, Float32]]:
        """Logits step by step, from position `first` on: the position of the first row, and the rows as a copy."""
        size = self._block_size
        for begin, batch in chunks(token_ids, size, self.artifact.plan.max_step_tokens, self._num_groups, first):
            logits = self._executor_for(len(token_ids)).step(batch)
            if len(batch.logit_rows):
                yield begin + int(batch.logit_rows[0]), logits.copy()

    def answers(self, prompts: Sequence[Int32], num_new: int) -> list[Int32]:
        """`num_new` greedy tokens after each prompt, ends of text ignored; fewer where the context ends."""
        self._close_executor()  # its cache would be counted as memory in use
        limit = self.artifact.config.max_seq_len
        assert limit is not None
        engine = load_engine(self.artifact, num_threads=self.num_threads)
        tokens: dict[str, list[int]] = {}
        try:
            for ids in prompts:
                room = min(num_new, limit - len(ids))
                params = SamplingParams(temperature=0.0, max_tokens=max(room, 1), ignore_eos=True)
                tokens[engine.add_request(ids[: limit - 1], params)] = []
            while engine.has_unfinished():
                for output in engine.step():
                    if output.error is not None:
                        raise output.error
                    if output.token_id is not None:
                        tokens[output.request_id].append(output.token_id)
        finally:
            engine.close()
        return [np.array(answer, np.int32) for answer in tokens.values()]

    def close(self) -> None:
        self._close_executor()

    def __enter__(self) -> CompiledModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _block_size(self) -> int:
        assert self.artifact.config.kvcache_block_size is not None, "an artifact's config is resolved"
        return self.artifact.config.kvcache_block_size

    @property
    def _num_groups(self) -> int:
        return len(cache_groups(self.artifact.program.spec))

    def _executor_for(self, length: int) -> Executor:
        """One whose cache holds `length` positions."""
        if self._executor is None or self._room < length:
            self._close_executor()
            blocks = num_blocks([length], self._block_size, self._num_groups)
            self._executor = load_executor(self.artifact, cache_config(self.artifact, blocks), self.num_threads)
            self._room = length
        return self._executor

    def _close_executor(self) -> None:
        if self._executor is not None:
            self._executor.close()
        self._executor, self._room = None, 0


def cache_config(artifact: Artifact, blocks: int) -> CacheConfig:
    """A cache as the artifact's config says."""
    config = artifact.config
    assert config.kvcache_block_size is not None and config.kv_cache is not None, "an artifact's config is resolved"
    return CacheConfig(blocks, config.kvcache_block_size, config.kv_cache)
