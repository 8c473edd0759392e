"""A compiled model that drafts for another one, as `assistant_model` of a `generate` call: the draft of its engine for
as long as the call takes.

Called by QwenchForCausalLM, under the lock of its pages.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from qwench.artifact.artifact import Artifact
from qwench.errors import CapacityError, ConfigError
from qwench.host import available_memory_bytes, format_bytes, num_cpus
from qwench.runtime.engine import Engine
from qwench.runtime.loading import draft_block_bytes, load_draft
from qwench.runtime.spec_decode.draft_model import DraftModel


class _Model(Protocol):
    @property
    def artifact(self) -> Artifact: ...
    @property
    def engine(self) -> Engine: ...


class Drafts:
    """The draft that the model used last is kept, with its cache, for the next call."""

    def __init__(self, model: _Model) -> None:
        self._model = model
        self._artifact: Artifact | None = None
        self._draft: DraftModel | None = None

    @contextlib.contextmanager
    def attached(self, artifact: Artifact | None) -> Iterator[None]:
        """The engine guesses with this model within; None: with none. Raises CapacityError when there is no memory for
        its cache."""
        if artifact is None:
            yield
            return
        if artifact is not self._artifact:
            self._load(artifact)
        speculation = self._model.engine.speculation
        speculation.draft = self._draft
        try:
            yield
        finally:
            speculation.draft = None

    def _load(self, artifact: Artifact) -> None:
        engine, model = self._model.engine, self._model.artifact
        if (model.config.tensor_parallel_size or 1) > 1:
            raise ConfigError("assistant_model drafts in one process; leave out tensor_parallel_size or it")
        if self._draft is not None:
            self._draft.close()
        self._artifact = self._draft = None
        num_bytes = engine.cache.num_blocks * draft_block_bytes(
            artifact.program, artifact.config, engine.cache.block_size
        )
        if num_bytes > (available := available_memory_bytes()):
            raise CapacityError(
                f"the assistant_model needs {format_bytes(num_bytes)} for a cache as long as the model's, and "
                f"{format_bytes(available)} are available; load the model with fewer kvcache_num_blocks"
            )
        self._draft = load_draft(artifact, model, engine.cache, engine.executor, num_cpus())
        engine.scheduler.pool.num_followed[:] = [0] * engine.scheduler.pool.num_blocks
        self._artifact = artifact
