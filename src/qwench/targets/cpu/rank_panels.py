"""A rank's panels of a packed matrix, copied out of the artifact's file into memory of its own.

The file's pages lie wherever whoever read them first has run; a copy is made by the rank itself, so that on a machine
with several sockets it lies beside the processors that read it, on huge pages where the system has them.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import numpy as np

from qwench.checkpoint.spec import ModelSpec
from qwench.program.ops import Op
from qwench.program.shard import PANEL, Span
from qwench.targets.target import Array, Bytes

_HUGE_PAGE = 2 << 20


def panels_of(op: Op, spec: ModelSpec) -> list[Span]:
    """Those that a sharded product reads; of q, k and v stacked, those that hold a column of the rank's heads."""
    if "heads" not in op.attrs:
        return [op.attrs["panels"]]
    first, last = op.attrs["heads"]
    share = spec.num_heads // spec.num_kv_heads
    keys = spec.num_heads + first // share, spec.num_heads + (last - 1) // share + 1
    values = keys[0] + spec.num_kv_heads, keys[1] + spec.num_kv_heads
    return [(a * spec.head_dim // PANEL, -(-b * spec.head_dim // PANEL)) for a, b in ((first, last), keys, values)]


def copy_panels(packed: Array, panels: Iterable[Span], num_panels: int) -> Bytes:
    """An array of the size of `packed`, which holds these panels alone: what was never written takes no memory."""
    panel_bytes = packed.nbytes // num_panels
    memory = mmap.mmap(-1, packed.nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # but where the panels fill them
    copy = np.frombuffer(memory, np.uint8)
    for first, last in panels:
        begin, end = first * panel_bytes, last * panel_bytes
        _ask_for_huge_pages(memory, copy.ctypes.data, begin, end)
        copy[begin:end] = packed[begin:end]
    return copy


def _ask_for_huge_pages(memory: mmap.mmap, address: int, begin: int, end: int) -> None:
    """Within [begin, end), so that none takes memory for what a rank doesn't have."""
    first = begin + -(address + begin) % _HUGE_PAGE
    length = (end - first) // _HUGE_PAGE * _HUGE_PAGE
    if length > 0:
        memory.madvise(mmap.MADV_HUGEPAGE, first, length)
