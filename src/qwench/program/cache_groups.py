"""Which layers share the blocks of the KV cache, and how many blocks a sequence holds.

A layer with a sliding window needs only the last positions, so its blocks come free while the sequence goes on; a
layer without needs them all. Layers that see the same positions are a group: one block table serves them. Blocks of all
groups come from one pool, so all groups have equally many layers, as many as divide the layers of each window evenly:
of 28 layers that see everything and 4 that slide, blocks hold 4 layers, and there are 7 + 1 groups.

Knows nothing of who holds a block. Called by targets, the scheduler, and whoever plans memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qwench.checkpoint.spec import ModelSpec

POSITIONS_READ_AT_ONCE = 64  # at absolute multiples; targets may read them all and then mask what the window hides


@dataclass(frozen=True)
class CacheGroup:
    """Layers with one block table; `window`: how many positions a token sees, itself included; None: all."""

    window: int | None
    layers: tuple[int, ...]


def cache_groups(spec: ModelSpec) -> tuple[CacheGroup, ...]:
    """The groups of a model in the order of `StepBatch.block_tables`: first those that see everything."""
    of_window: dict[int | None, list[int]] = {}
    for layer, window in enumerate(spec.sliding_windows):
        of_window.setdefault(window, []).append(layer)
    size = math.gcd(*map(len, of_window.values()))
    return tuple(
        CacheGroup(window, tuple(layers[i : i + size]))
        for window, layers in sorted(of_window.items(), key=lambda item: (item[0] is not None, item[0] or 0))
        for i in range(0, len(layers), size)
    )


def windows_of(spec: ModelSpec) -> tuple[int | None, ...]:
    """The window of each cache group."""
    return tuple(group.window for group in cache_groups(spec))


def first_position(window: int | None, position: int) -> int:
    """The first position that must be in the cache when `position` and what follows it are computed."""
    if window is None:
        return 0
    return max(0, position + 1 - window) // POSITIONS_READ_AT_ONCE * POSITIONS_READ_AT_ONCE


def most_blocks(windows: Sequence[int | None], num_tokens: int, block_size: int, max_step_tokens: int) -> int:
    """Blocks that a sequence of up to `num_tokens` ever holds at once, all groups together.

    In a group with a window: those of the step, of the window before it, and what rounding adds on either side.
    """
    every = -(-num_tokens // block_size)
    count = 0
    for window in windows:
        if window is None:
            count += every
        else:
            positions = max_step_tokens + window - 1 + POSITIONS_READ_AT_ONCE - 1
            count += min(every, -(-(positions + block_size - 1) // block_size))
    return count
