"""Rows of a step in tiles of one LoRA adapter each, as kernels/lora.py reads them. Called for each step that has
adapters, by step_arrays.py."""

from __future__ import annotations

import numpy as np

from qwench.targets.target import Int32

NO_ADAPTER = -1
FEW_ROWS = 128  # up to which tiles are as narrow as can be
FEWEST_GROUPS = 8  # that room is made for, so that steps with more or fewer adapters have one shape


def tile_width(num_rows: int) -> int:
    return 16 if num_rows <= FEW_ROWS else 64


def adapter_tiles(of_row: Int32, num_seqs: int) -> tuple[Int32, Int32]:
    """of_row: [n], an adapter's number or NO_ADAPTER. Gives the rows by adapter, [n], and tiles, [num_tiles, 3]: the
    number plus 1, the first of those rows and how many. num_tiles depends on n, the sequences, and whether there are
    more groups than FEWEST_GROUPS (then: 16, 32, ...); the last ones may be empty."""
    rows, width = np.argsort(of_row, kind="stable").astype(np.int32), tile_width(len(of_row))
    slots, starts, counts = np.unique(of_row[rows] + 1, return_index=True, return_counts=True)
    groups = min(num_seqs, max(1 << (len(slots) - 1).bit_length(), FEWEST_GROUPS)) if len(slots) else 0
    tiles = np.zeros(((len(rows) + groups * (width - 1)) // width, 3), np.int32)
    tiles_of = -(-counts // width)
    group = np.repeat(np.arange(len(slots)), tiles_of)
    skipped = (np.arange(len(group)) - np.repeat(np.cumsum(tiles_of) - tiles_of, tiles_of)) * width
    tiles[: len(group), 0], tiles[: len(group), 1] = slots[group], starts[group] + skipped
    tiles[: len(group), 2] = np.minimum(counts[group] - skipped, width)
    return rows, tiles
