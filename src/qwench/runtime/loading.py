"""A compiled model -> an Engine on this machine: the executor, and as many cache blocks as memory allows.

Knows nothing of checkpoints, files or text. Called by `LLM`, the command line and the transformers face.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Protocol

from qwench.config import QwenchConfig
from qwench.errors import CapacityError, ConfigError
from qwench.host import available_memory_bytes, num_cpus
from qwench.program.memory import MemoryPlan
from qwench.program.ops import Program
from qwench.runtime.engine import Engine
from qwench.runtime.scheduler import MAX_STEP_DRAFTS
from qwench.targets.target import Array, CacheConfig, get_target

logger = logging.getLogger(__name__)

GIB = 1 << 30
MAX_THREADS = 1024
DEFAULT_CACHE_BYTES = 4 * GIB  # without a budget from the user the cache takes no more, however much is free,
DEFAULT_CACHE_SHARE = 0.5  # and no more than this share of what the weights leave; one full sequence it always gets


class CompiledModel(Protocol):
    """What the engine needs of an artifact; `config` is resolved."""

    @property
    def program(self) -> Program: ...
    @property
    def plan(self) -> MemoryPlan: ...
    @property
    def config(self) -> QwenchConfig: ...
    @property
    def tensors(self) -> Mapping[str, Array]: ...


def load_engine(
    model: CompiledModel, *, num_threads: int | None = None, num_blocks: int | None = None, memory: int | None = None,
    enable_prefix_caching: bool = True, eos_token_ids: Iterable[int] = (),
) -> Engine:  # fmt: skip
    """An engine over `model`, whose tensors it keeps alive.

    num_threads: default: the processors this process may use. num_blocks: cache blocks; default: the config's
    kvcache_num_blocks, else what `choose_num_blocks` finds. memory: bytes for weights, activations and cache together;
    default: the config's, else what is free. Raises CapacityError when that isn't enough for one full sequence.
    """
    config = model.config
    assert config.max_seq_len and config.batch_size and config.kvcache_block_size and config.kv_cache and config.target
    threads = num_cpus() if num_threads is None else num_threads
    if not 1 <= threads <= MAX_THREADS:
        raise ConfigError(f"num_threads is {num_threads}; it must be from 1 to {MAX_THREADS}")
    blocks = choose_num_blocks(model, num_blocks or config.kvcache_num_blocks, memory or config.memory)
    cache = CacheConfig(blocks, config.kvcache_block_size, config.kv_cache)
    executor = get_target(config.target).load(model.program, model.plan, model.tensors, cache, threads)
    return Engine(
        executor, model.program.spec.vocab_size, cache, max_seq_len=config.max_seq_len,
        max_num_seqs=config.batch_size, max_step_tokens=model.plan.max_step_tokens, eos_token_ids=eos_token_ids,
        enable_prefix_caching=enable_prefix_caching,
    )  # fmt: skip


def choose_num_blocks(model: CompiledModel, wanted: int | None = None, memory: int | None = None) -> int:
    """Blocks of the KV cache: `wanted` if given; else as many as the budget holds, up to batch_size full sequences.

    The budget is `memory` less what the model itself takes. Without `memory` it is half of what is free beside
    the model, at most 4 GiB, but one full sequence if that needs more and is there. Raises CapacityError.
    """
    config = model.config
    assert config.max_seq_len and config.batch_size and config.kvcache_block_size and config.kv_cache
    block_bytes = CacheConfig(1, config.kvcache_block_size, config.kv_cache).block_bytes(model.program)
    one_sequence = -(-config.max_seq_len // config.kvcache_block_size)
    weights = sum(tensor.nbytes for tensor in model.tensors.values())
    num_logits = config.batch_size + MAX_STEP_DRAFTS
    fixed = weights + model.plan.num_bytes + num_logits * model.program.spec.vocab_size * 4
    available = available_memory_bytes() if memory is None else memory
    rest = available - fixed
    least = wanted or one_sequence
    if wanted is not None and wanted < one_sequence:
        raise ConfigError(
            f"{wanted} cache blocks can't hold one sequence of max_seq_len {config.max_seq_len}; give at least "
            f"{one_sequence}"
        )
    if rest < least * block_bytes:
        raise CapacityError(
            f"the model needs {_gib(fixed + least * block_bytes)}: {_gib(fixed)} for weights and activations, "
            f"{_gib(least * block_bytes)} for {least} cache blocks "
            f"({'as asked for' if wanted else f'one sequence of {config.max_seq_len} tokens'}); "
            f"there are {_gib(available)} {'allowed' if memory else 'available'}. Lower max_seq_len, "
            "kvcache_num_blocks or batch_size, compile to a smaller weight format, or free memory"
        )
    budget = rest
    if memory is None:
        budget = max(min(int(rest * DEFAULT_CACHE_SHARE), DEFAULT_CACHE_BYTES), one_sequence * block_bytes)
    blocks = wanted or min(budget // block_bytes, config.batch_size * one_sequence)
    logger.info(
        "memory: %s %s; weights %s, activations and logits %s, KV cache %s (%d blocks, %d tokens); %s left",
        _gib(available), "allowed" if memory else "available", _gib(weights), _gib(fixed - weights),
        _gib(blocks * block_bytes), blocks, blocks * config.kvcache_block_size, _gib(rest - blocks * block_bytes),
    )  # fmt: skip
    return int(blocks)


def _gib(num_bytes: int) -> str:
    if abs(num_bytes) < GIB // 10:
        return f"{num_bytes / (1 << 20):.1f} MiB"
    return f"{num_bytes / GIB:.2f} GiB"
