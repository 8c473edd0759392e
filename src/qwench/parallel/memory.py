"""What some of the ranks need of a model's memory: those of a host in `runtime/loading.py`, each in `qwench plan`."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwench.program.ops import Op, Program, matrices_of
from qwench.program.shard import Shares, outputs_per_panel, shard
from qwench.targets.target import Array


@dataclass(frozen=True)
class MemoryShare:
    """weight_bytes: of packed weights. cache_part: of a block of the KV cache, as several ranks may keep the same head;
    above 1 where those of one host do."""

    weight_bytes: int
    cache_part: float


def share_of_ranks(
    program: Program, weight_bytes: Mapping[str, float], shares: Shares, ranks: Sequence[int]
) -> MemoryShare:
    """weight_bytes: of each packed weight. Matrices that are multiplied count: of an embedding matrix that isn't, only
    the rows of a step's tokens are read, from the file."""
    total, cache_part = 0.0, 0.0
    for rank in ranks:
        ops = shard(program, shares, rank).ops
        total += sum(weight_bytes[name] * _part_of(program, op) for op in ops for name in matrices_of(op))
        cache_part += _num_kv_heads(program, ops) / program.spec.num_kv_heads
    return MemoryShare(round(total), cache_part)


def release_pages(tensors: Mapping[str, Array]) -> None:
    """Gives back the pages of mapped files that have been read; a later read fetches them again."""
    views: list[Any] = [tensor.base for tensor in tensors.values() if isinstance(tensor.base, memoryview)]
    for file in {id(view.obj): view.obj for view in views}.values():
        if isinstance(file, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            file.madvise(mmap.MADV_DONTNEED)


def _part_of(program: Program, op: Op) -> float:
    """What a rank reads of a product's matrix."""
    spec = program.spec
    if "heads" in op.attrs:
        num_heads = op.attrs["heads"][1] - op.attrs["heads"][0]
        num_kv_heads: int = _num_kv_heads(program, [op])
        return float(num_heads + 2 * num_kv_heads) / (spec.num_heads + 2 * spec.num_kv_heads)
    first, last = op.attrs["panels"]
    return float(last - first) / -(-program.buffers[op.output].width // outputs_per_panel(program, op))


def _num_kv_heads(program: Program, ops: Sequence[Op]) -> int:
    first, last = next(op.attrs["heads"] for op in ops if "heads" in op.attrs)
    share = program.spec.num_heads // program.spec.num_kv_heads
    return int((last - 1) // share - first // share + 1)
