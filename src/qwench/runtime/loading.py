"""A compiled model -> an Engine on this machine: the executor, and as many cache blocks as memory allows; with a draft
model, for both.

Called by `LLM`, the command line and `QwenchForCausalLM`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qwench.config import QwenchConfig
from qwench.errors import CapacityError, ConfigError, TargetError
from qwench.host import available_memory_bytes, format_bytes, num_cpus
from qwench.parallel.hosts import Hosts, join_hosts
from qwench.parallel.load import load_team, shares_of
from qwench.parallel.memory import MemoryShare, share_of_ranks
from qwench.program.cache_groups import windows_of
from qwench.program.memory import MemoryPlan
from qwench.program.ops import Program
from qwench.runtime.engine import Engine
from qwench.runtime.profiler import Profiler
from qwench.runtime.scheduler import MAX_EXTRA_ROWS
from qwench.runtime.spec_decode.draft_model import DraftModel
from qwench.targets.registry import get_target
from qwench.targets.target import Array, CacheConfig, DeviceTarget, Executor, ThreadedExecutor, TimedExecutor

logger = logging.getLogger(__name__)

GIB = 1 << 30
MAX_THREADS = 1024
DEFAULT_CACHE_BYTES = 4 * GIB  # without a budget from the user the cache takes no more, however much is free,
DEFAULT_CACHE_SHARE = 0.5  # and no more than this share of what the weights leave; one full sequence it always gets


class CompiledModel(Protocol):
    """What the engine needs of an artifact; `config` is resolved."""

    @property
    def path(self) -> Path: ...
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
    enable_prefix_caching: bool = True, eos_token_ids: Iterable[int] = (), draft: CompiledModel | None = None,
) -> Engine:  # fmt: skip
    """An engine over `model`, whose tensors it keeps alive. draft: a model of the same vocabulary that guesses for it.

    num_threads: default: the processors this process may use. num_blocks: cache blocks; default: the config's
    kvcache_num_blocks, else what `choose_num_blocks` finds. memory: bytes for weights, activations and cache together;
    default: the config's, else what is free. Raises CapacityError when that isn't enough for one full sequence.
    """
    config = model.config
    assert config.max_seq_len and config.batch_size and config.kvcache_block_size and config.kv_cache and config.target
    if config.create_runtimes is False:
        raise ConfigError(
            "create_runtimes is False: such a model is only compiled and saved; load it without to run it"
        )
    if config.decoder_batch_sizes not in (None, (config.batch_size,)):
        logger.info(
            "decoder_batch_sizes %s: this target runs any number of sequences up to %d as it is and prepares nothing",
            config.decoder_batch_sizes, config.batch_size,
        )  # fmt: skip
    if not 1 <= (1 if num_threads is None else num_threads) <= MAX_THREADS:
        raise ConfigError(f"num_threads is {num_threads}; it must be from 1 to {MAX_THREADS}")
    hosts = join_hosts()
    if draft is not None and (hosts is not None or (config.tensor_parallel_size or 1) > 1):
        raise ConfigError("a draft model runs in one process; leave out tensor_parallel_size or the draft")
    blocks = choose_num_blocks(model, num_blocks or config.kvcache_num_blocks, memory or config.memory, hosts, draft)
    cache = config.cache(blocks)
    executor = load_executor(model, cache, num_threads)
    profiler = None
    if config.activate_profiler:
        if not isinstance(executor, TimedExecutor):
            raise TargetError(f"activate_profiler: target {config.target!r} keeps no clock; compile for cpu instead")
        profiler = Profiler(executor)
    return Engine(
        executor, model.program.spec.vocab_size, cache, max_seq_len=config.max_seq_len,
        max_num_seqs=config.batch_size, max_step_tokens=model.plan.max_step_tokens, eos_token_ids=eos_token_ids,
        enable_prefix_caching=enable_prefix_caching, timeout_s=config.timeout, profiler=profiler,
        windows=windows_of(model.program.spec), head=model.program.spec.head, is_causal=model.program.spec.is_causal,
        draft=None if draft is None else load_draft(draft, model, cache, executor, num_threads),
    )  # fmt: skip


def load_executor(model: CompiledModel, cache: CacheConfig, num_threads: int | None = None) -> Executor:
    """The executor of `model`, of one process or of the ranks that its config and `mpiexec` ask for."""
    config, hosts = model.config, join_hosts()
    if hosts is not None or (config.tensor_parallel_size or 1) > 1:
        return load_team(model.path, model.program, model.plan, model.tensors, config, cache, num_threads, hosts)
    assert config.target
    threads = num_cpus() if num_threads is None else num_threads
    return get_target(config.target).load(model.program, model.plan, model.tensors, cache, threads)


def load_draft(
    draft: CompiledModel, model: CompiledModel, cache: CacheConfig, beside: Executor, num_threads: int | None = None
) -> DraftModel:
    """A draft for an engine over `model`, with that `cache`. It shares the threads of the executor `beside` it."""
    config, spec = draft.config, draft.program.spec
    assert config.max_seq_len and config.target and model.config.max_seq_len and model.config.batch_size
    windows = windows_of(spec)
    own = dataclasses.replace(
        config.cache(cache.num_blocks * len(windows)), block_size=cache.block_size
    )  # for each of the model's blocks one in each of its groups
    threads = num_cpus() if num_threads is None else num_threads
    executor = get_target(config.target).load(draft.program, draft.plan, draft.tensors, own, threads)
    if isinstance(executor, ThreadedExecutor):
        executor.share_threads(beside)
    return DraftModel(
        executor, spec.vocab_size, own, target_vocab_size=model.program.spec.vocab_size,
        max_seq_len=config.max_seq_len, max_rows=min(model.config.batch_size, MAX_EXTRA_ROWS),
        max_step_tokens=draft.plan.max_step_tokens, max_blocks=-(-model.config.max_seq_len // cache.block_size),
        windows=windows, target_windows=windows_of(model.program.spec),
    )  # fmt: skip


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes: available to the model; for packed weights; for activations, logits and the RoPE table. Where there is a
    draft, for both."""

    available: int
    weights: int
    working: int

    @property
    def used(self) -> int:
        return self.weights + self.working

    @property
    def rest(self) -> int:
        """What the cache may have; negative if there is too little without it."""
        return self.available - self.used


def memory_budget(
    model: CompiledModel, memory: int | None = None, hosts: Hosts | None = None, draft: CompiledModel | None = None
) -> MemoryBudget:
    """What the model, with its draft, takes of `memory` bytes, by default of what is free; of several hosts, on the one
    that has the least."""
    weights = sum(tensor.nbytes for tensor in model.tensors.values())
    available = _available_bytes(model.config) if hosts is None else hosts.least_available_bytes()
    fit = MemoryBudget(
        available if memory is None else memory,
        largest_share(model, hosts).weight_bytes if _has_several_memories(model.config, hosts) else weights,
        working_bytes(model.program, model.plan, model.config),
    )
    if draft is None:
        return fit
    other = memory_budget(draft, memory)
    return MemoryBudget(fit.available, fit.weights + other.weights, fit.working + other.working)


def _available_bytes(config: QwenchConfig) -> int:
    """Of the memory that a model on its target lies in."""
    device = _device_target(config)
    return available_memory_bytes() if device is None else device.available_bytes()


def _device_target(config: QwenchConfig) -> DeviceTarget | None:
    """The target, if it has memory of its own."""
    assert config.target is not None, "resolve() first"
    target = get_target(config.target)
    return target if isinstance(target, DeviceTarget) else None


def draft_block_bytes(draft: Program, config: QwenchConfig, block_size: int) -> int:
    """What a draft's cache takes beside each block of the model's, of `block_size` positions."""
    cache = dataclasses.replace(config.cache(1), block_size=block_size)
    return len(windows_of(draft.spec)) * cache.block_bytes(draft)


def _has_several_memories(config: QwenchConfig, hosts: Hosts | None) -> bool:
    """Whether the model lies in those of several hosts, or devices."""
    return hosts is not None or ((config.tensor_parallel_size or 1) > 1 and _device_target(config) is not None)


def largest_share(model: CompiledModel, hosts: Hosts | None) -> MemoryShare:
    """Of weights and cache, that of the host, or the device, with the most."""
    program, shares = model.program, shares_of(model.config, model.program.spec, hosts)
    weights = {name: tensor.nbytes for name, tensor in model.tensors.items()}
    whole = 0  # that each keeps beside its share
    if _device_target(model.config) is None:
        together = [shares.ranks(host) for host in range(len(shares.hosts))]
    else:
        together = [range(rank, rank + 1) for rank in range(len(shares.parts))]
        whole = sum(weights[name] for op in program.ops if op.kind == "embed" for name in op.weights)
    each = [share_of_ranks(program, weights, shares, ranks) for ranks in together]
    return MemoryShare(whole + max(share.weight_bytes for share in each), max(share.cache_part for share in each))


def working_bytes(program: Program, plan: MemoryPlan, config: QwenchConfig) -> int:
    """Activations, the logits of a step, and the RoPE table of max_seq_len positions; of a resolved config."""
    assert config.batch_size and config.max_seq_len, "resolve() first"
    spec = program.spec
    num_logits = plan.max_step_tokens if spec.head.is_classifier else config.batch_size + MAX_EXTRA_ROWS
    floats = num_logits * spec.num_outputs + config.max_seq_len * spec.head_dim
    return plan.num_bytes + 4 * floats


def choose_num_blocks(
    model: CompiledModel, wanted: int | None = None, memory: int | None = None, hosts: Hosts | None = None,
    draft: CompiledModel | None = None,
) -> int:  # fmt: skip
    """Blocks of the KV cache: `wanted` if given; else as many as the budget holds, up to batch_size full sequences.
    With a draft each is one of the model's and one of the draft's.

    The budget is `memory` less what the model itself takes. Without `memory` it is half of what is free beside
    the model, at most 4 GiB, but one full sequence if that needs more and is there; on a device, which serves nobody
    else, all that is free. Of several hosts each must hold its
    share, of as much memory. Raises CapacityError.
    """
    config = model.config
    assert config.max_seq_len and config.batch_size and config.kvcache_block_size
    block_bytes = config.cache(1).block_bytes(model.program)
    if _has_several_memories(config, hosts):
        block_bytes = round(block_bytes * largest_share(model, hosts).cache_part)
    if draft is not None:
        block_bytes += draft_block_bytes(draft.program, draft.config, config.kvcache_block_size)
    windows, one_sequence = windows_of(model.program.spec), config.blocks_of_one_sequence(model.program.spec)
    fit = memory_budget(model, memory, hosts, draft)
    rest = fit.rest
    least = wanted or one_sequence
    if wanted is not None and wanted < one_sequence:
        raise ConfigError(
            f"{wanted} cache blocks can't hold one sequence of max_seq_len {config.max_seq_len}; give at least "
            f"{one_sequence}"
        )
    if rest < least * block_bytes:
        raise CapacityError(
            f"the model{'' if draft is None else ' with its draft'} needs "
            f"{format_bytes(fit.used + least * block_bytes)}: {format_bytes(fit.used)} for weights and "
            f"activations, {format_bytes(least * block_bytes)} for {least} cache blocks "
            f"({'as asked for' if wanted else f'one sequence of {config.max_seq_len} tokens'}); "
            f"there are {format_bytes(fit.available)} {'allowed' if memory else 'available'}. Lower max_seq_len, "
            "kvcache_num_blocks or batch_size, compile to a smaller weight format, or free memory"
        )
    budget = rest
    if memory is None and _device_target(config) is None:
        budget = max(min(int(rest * DEFAULT_CACHE_SHARE), DEFAULT_CACHE_BYTES), one_sequence * block_bytes)
    blocks = wanted or min(budget // block_bytes, config.batch_size * one_sequence)
    logger.info(
        "memory: %s %s; weights %s, activations and logits %s, KV cache %s (%d blocks, %d tokens); %s left",
        format_bytes(fit.available), "allowed" if memory else "available", format_bytes(fit.weights),
        format_bytes(fit.working), format_bytes(blocks * block_bytes), blocks,
        blocks // len(windows) * config.kvcache_block_size, format_bytes(rest - blocks * block_bytes),
    )  # fmt: skip
    return int(blocks)
