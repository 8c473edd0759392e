"""How several models share memory: what each takes once it is loaded, and which of them are loaded at the start.

The arithmetic of runtime/loading.py, before anything is loaded. Called by the command line.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwench.artifact.artifact import read_plan
from qwench.config import QwenchConfig
from qwench.errors import CapacityError
from qwench.host import available_memory_bytes, format_bytes
from qwench.runtime.loading import DEFAULT_CACHE_BYTES, DEFAULT_CACHE_SHARE, working_bytes
from qwench.serve.models.model_settings import ModelSettings
from qwench.targets.registry import get_target

logger = logging.getLogger(__name__)

PROCESS_BYTES = 256 << 20  # of a model's two processes beside what is planned: 60 to 150 MiB, more for long texts


@dataclass(frozen=True)
class Need:
    """Bytes of one model: for weights and the work of a step; of cache, at least for a full sequence and at most for as
    many as run at once."""

    fixed: int
    least_cache: int
    most_cache: int

    @property
    def least(self) -> int:
        return self.fixed + self.least_cache


def with_shares(models: Sequence[ModelSettings], memory: int | None) -> tuple[tuple[ModelSettings, ...], int]:
    """The models with what each may take of `memory` bytes, by default of what is free, and these bytes.

    Those that `starts` says are as many, in their order, as fit together. With less than its share a model is loaded if
    that leaves it half of its cache, and the cache of a full sequence. Raises CapacityError when none fits, and
    ArtifactError.
    """
    plans = [_plan(model.folder, model.config) for model in models]
    needs = [need for need, _ in plans]
    budget = max(available_memory_bytes() - PROCESS_BYTES * len(models), 0) if memory is None else memory
    together = fitting(needs, range(len(needs)), budget)
    if not together:
        raise CapacityError(
            f"none of the models fits into {format_bytes(budget)}: they need "
            + ", ".join(f"{format_bytes(need.least)} ({model.names[0]})" for model, need in zip(models, needs))
        )
    shared = []
    for i, cache in enumerate(caches(needs, budget, is_given=memory is not None)):
        share, least = needs[i].fixed + cache, needs[i].fixed + max(needs[i].least_cache, cache // 2)
        _tell(models[i], share, budget)
        shared.append(
            dataclasses.replace(
                models[i], share=share, least_share=least, max_seq_len=plans[i][1], starts=i in together
            )
        )
    return tuple(shared), budget


def fitting(needs: Sequence[Need], order: Sequence[int], memory: int) -> list[int]:
    """Which of them fit together when each, in this order, is taken if there is still room for it."""
    taken = []
    for i in order:
        if needs[i].least <= memory:
            taken.append(i)
            memory -= needs[i].least
    return taken


def caches(needs: Sequence[Need], memory: int, *, is_given: bool) -> list[int]:
    """Bytes of each model's cache: an equal share of what is left when it and as many of the others as fit are loaded.

    A memory that nobody gave is used up to a half, and up to 4 GiB each, as for one model.
    """
    found = []
    for i, need in enumerate(needs):
        group = fitting(needs, [i, *(other for other in range(len(needs)) if other != i)], memory)
        rest = memory - sum(needs[j].least for j in group)
        rooms = {j: needs[j].most_cache - needs[j].least_cache for j in group}
        if not is_given:
            rest = int(rest * DEFAULT_CACHE_SHARE)
            rooms = {j: min(room, max(DEFAULT_CACHE_BYTES - needs[j].least_cache, 0)) for j, room in rooms.items()}
        found.append(need.least_cache + _equal_shares(rooms, rest).get(i, 0))
    return found


def _equal_shares(rooms: dict[int, int], rest: int) -> dict[int, int]:
    """Of `rest`, to each as much as to all others, but no more than it has room for."""
    shares = {}
    for done, (i, room) in enumerate(sorted(rooms.items(), key=lambda entry: entry[1])):
        shares[i] = min(room, rest // (len(rooms) - done))
        rest -= shares[i]
    return shares


def _plan(folder: Path, given: QwenchConfig) -> tuple[Need, int]:
    """What the model in the folder needs, and the tokens of its context. Raises ArtifactError, ConfigError."""
    compiled, program, plan = read_plan(folder)
    config = compiled.overridden_by(dataclasses.replace(given.at_load(), memory=None)).resolve(program.spec)
    assert config.target and config.batch_size and config.max_seq_len
    target = get_target(config.target)
    weights = sum(t.num_bytes for weight in program.weights.values() for t in target.packed_tensors(weight))
    block_bytes, one = config.cache(1).block_bytes(program), config.blocks_of_one_sequence(program.spec)
    wanted = config.kvcache_num_blocks
    need = Need(
        weights + working_bytes(program, plan, config), (wanted or one) * block_bytes,
        (wanted or one * config.batch_size) * block_bytes,
    )  # fmt: skip
    return need, config.max_seq_len


def _tell(model: ModelSettings, num_bytes: int, budget: int) -> None:
    if num_bytes > budget:
        logger.warning(
            "%s needs %s and there are %s: requests for it are refused", model.names[0], format_bytes(num_bytes),
            format_bytes(budget),
        )  # fmt: skip
    else:
        logger.info("%s may take %s of %s", model.names[0], format_bytes(num_bytes), format_bytes(budget))
