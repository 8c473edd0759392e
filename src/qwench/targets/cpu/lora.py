"""An adapter's part in one product, laid out as native/kernels/kernel_table.h's LoraMatrix says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from qwench.program.ops import Weight
from qwench.targets.adapted_products import AdaptedProduct
from qwench.targets.target import Float32, Int32

PANEL, BLOCK, SUMS = 64, 16, 4  # kPanelColumns, kLoraBlock, kLoraSums
Halves = npt.NDArray[np.uint16]  # bf16


@dataclass(frozen=True)
class PackedLora:
    """depth: ranks that an output needs. The arrays are flat."""

    a: Halves
    b: Halves
    scales: Float32
    first_rank: Int32
    depth: int


def pack_lora(product: AdaptedProduct) -> PackedLora:
    """Sources that are changed have their ranks one after another, as many for each as the largest has."""
    pairs, k, num_rows = product.pairs, product.weight.shape[1], sum(product.heights)
    depth = max(pair.rank for pair in pairs if pair is not None)
    num_ranks = -(-depth * sum(pair is not None for pair in pairs) // BLOCK) * BLOCK
    a = np.zeros((num_ranks, -(-k // SUMS) * SUMS), ml_dtypes.bfloat16)
    b = np.zeros((num_rows, num_ranks), ml_dtypes.bfloat16)
    scales, first_of_row = np.zeros(num_ranks, np.float32), np.full(num_rows, -1, np.int32)
    first = row = 0
    for height, pair in zip(product.heights, pairs, strict=True):
        if pair is not None:
            ranks, rows = slice(first, first + pair.rank), slice(row, row + height)
            a[ranks, :k] = pair.a if product.order is None else pair.a[:, product.order]
            b[rows, ranks] = pair.b if product.row_order is None else pair.b[product.row_order]
            scales[ranks], first_of_row[rows] = pair.scale, first
            first += depth
        row += height
    columns = _panel_columns(product.weight, num_rows)
    first_rank, depth = _ranks_of_blocks(_take(first_of_row, columns, -1), depth, num_ranks)
    ranks_of_blocks = np.add.outer(first_rank, np.arange(depth))
    by_rank = np.take_along_axis(  # [blocks, 16, depth]
        _take(b, columns, 0).reshape(-1, BLOCK, num_ranks), ranks_of_blocks[:, None, :], axis=2
    )
    by_panel = by_rank.reshape(-1, PANEL // BLOCK, BLOCK, depth).transpose(0, 3, 1, 2)
    by_k = a.reshape(-1, BLOCK, a.shape[1]).transpose(0, 2, 1)
    return PackedLora(_flat(by_k), _flat(by_panel), scales, first_rank, depth)


def _ranks_of_blocks(first_of_column: Int32, depth: int, num_ranks: int) -> tuple[Int32, int]:
    """For each 16 columns the first of the ranks that they need, and how many that are: more than one source's where
    one ends within 16 columns, as in very small models. -1 stands for columns that need none."""
    blocks = first_of_column.reshape(-1, BLOCK)
    low = np.where(blocks < 0, num_ranks, blocks).min(axis=1)
    depth = min(max(int((blocks.max(axis=1) - low).max()), 0) + depth, num_ranks)
    return np.minimum(low, num_ranks - depth).astype(np.int32), depth


def _panel_columns(weight: Weight, rows: int) -> Int32:
    """The row of the stacked sources in each column of the panels, -1 for padding."""
    if not weight.paired:
        return np.concatenate([np.arange(rows), np.full(-rows % PANEL, -1)]).astype(np.int32)
    half = rows // 2
    of_first = np.concatenate([np.arange(half), np.full(-half % (PANEL // 2), -1)]).reshape(-1, 1, PANEL // 2)
    of_second = np.where(of_first < 0, -1, of_first + half)
    return np.concatenate([of_first, of_second], axis=1).reshape(-1).astype(np.int32)


def _take(values: npt.NDArray[Any], columns: Int32, padding: int) -> npt.NDArray[Any]:
    taken = values[columns]
    taken[columns < 0] = padding
    return taken


def _flat(values: npt.NDArray[Any]) -> Halves:
    return np.ascontiguousarray(values).view(np.uint16).reshape(-1)
