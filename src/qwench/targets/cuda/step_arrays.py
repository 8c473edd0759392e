"""A StepBatch as the kernels read it: all its numbers in one array, uploaded at once.

Beside what the batch says there is what kernels would have to search for: of each token its sequence and position, and
the tiles of attention's queries. Called by the executor for each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qwench.targets.cuda.adapters.adapter_tiles import NO_ADAPTER, adapter_tiles
from qwench.targets.cuda.devices.device import Device, DeviceArray
from qwench.targets.cuda.memory.weights import padded
from qwench.targets.target import Int32, StepBatch

NO_POSITION = -1  # of tokens that only fill up a batch


@dataclass(frozen=True)
class Shape:
    """What decides the launches of a step beside its numbers.

    tables_width: blocks of a sequence in each cache group, as uploaded. longest: the most positions that a token sees.
    num_adapter_tiles, num_logit_adapter_tiles: of tokens and of rows of logits; 0 where no sequence has an adapter.
    """

    num_tokens: int
    num_seqs: int
    num_tiles: int
    num_logits: int
    num_hidden: int
    tables_width: int
    num_groups: int
    longest: int
    num_adapter_tiles: int
    num_logit_adapter_tiles: int


@dataclass(frozen=True)
class StepArrays:
    """Parts of one array on the device, int32: [num_tokens], [num_seqs], [num_tiles], and so on.

    tables: [num_groups, num_seqs, tables_width]. lengths: of each token's sequence, this step's tokens included.
    adapter_rows, adapter_tiles: tokens by adapter, [num_tokens] and [num_adapter_tiles, 3] (adapter_tiles.py), and the
    same of rows of logits; empty where no sequence has an adapter.
    """

    shape: Shape
    token_ids: DeviceArray
    positions: DeviceArray
    lengths: DeviceArray
    token_seq: DeviceArray
    seq_lens: DeviceArray
    query_start: DeviceArray
    tile_seq: DeviceArray
    tile_row: DeviceArray
    tile_len: DeviceArray
    logit_rows: DeviceArray
    hidden_rows: DeviceArray
    tables: DeviceArray
    adapter_rows: DeviceArray
    adapter_tiles: DeviceArray
    logit_adapter_rows: DeviceArray
    logit_adapter_tiles: DeviceArray

    def table(self, group: int) -> DeviceArray:
        size = self.shape.num_seqs * self.shape.tables_width
        return self.tables.part(group * size, size)


def host_arrays(
    batch: StepBatch, block_size: int, num_groups: int, tokens_per_tile: int, num_seqs: int
) -> tuple[Shape, list[Int32]]:
    """The arrays in the order of StepArrays. num_seqs: at least the batch's; more of them, of one token each, fill it
    up and leave nothing behind."""
    counts = np.diff(batch.query_start)
    extra = num_seqs - len(counts)
    ends = np.repeat(batch.seq_lens, counts)
    positions = (ends - (np.repeat(batch.query_start[1:], counts) - np.arange(len(ends)))).astype(np.int32)
    tiles_of = -(-counts // tokens_per_tile)
    tile_seq = np.repeat(np.arange(len(counts)), tiles_of)
    within = np.arange(len(tile_seq)) - np.repeat(np.cumsum(tiles_of) - tiles_of, tiles_of)
    tile_row = batch.query_start[tile_seq] + within * tokens_per_tile
    tile_len = np.minimum(batch.query_start[tile_seq + 1] - tile_row, tokens_per_tile)
    blocks = -(-int(batch.seq_lens.max()) // block_size)
    width = 1 << (blocks - 1).bit_length()
    tables = np.zeros((num_groups, num_seqs, width), np.int32)
    given = batch.block_tables.reshape(len(counts), num_groups, -1)[:, :, :width]
    tables[:, : len(counts), : given.shape[2]] = given.transpose(1, 0, 2)
    hidden = np.empty(0, np.int32) if batch.hidden_rows is None else batch.hidden_rows
    adapted, last = _by_adapter(batch, counts, num_seqs), len(batch.token_ids)
    arrays = [
        _filled(batch.token_ids, extra, 0), _filled(positions, extra, NO_POSITION), _filled(ends, extra, 0),
        _filled(np.repeat(np.arange(len(counts)), counts), extra, 0), _filled(batch.seq_lens, extra, 0),
        np.append(batch.query_start, np.arange(last + 1, last + extra + 1)), _filled(tile_seq, extra, 0),
        _filled(tile_row, extra, 0), _filled(tile_len, extra, 0), _filled(batch.logit_rows, extra, 0), hidden, tables,
        *adapted,
    ]  # fmt: skip
    shape = Shape(
        last + extra, num_seqs, len(tile_seq) + extra, len(batch.logit_rows) + extra, len(hidden), width, num_groups,
        width * block_size, len(adapted[1]), len(adapted[3]),
    )  # fmt: skip
    return shape, [np.ascontiguousarray(array, np.int32).reshape(-1) for array in arrays]


def _by_adapter(batch: StepBatch, counts: npt.NDArray[Any], num_seqs: int) -> list[Int32]:
    """The last four of StepArrays."""
    if batch.adapters is None or not (batch.adapters != NO_ADAPTER).any():
        return [np.empty((0, 3), np.int32)] * 4
    of_token, extra = np.repeat(batch.adapters, counts), num_seqs - len(counts)
    of_rows = (_filled(rows, extra, NO_ADAPTER) for rows in (of_token, of_token[batch.logit_rows]))
    return [array for of_row in of_rows for array in adapter_tiles(of_row, num_seqs)]


def _filled(values: npt.NDArray[Any], count: int, value: int) -> npt.NDArray[Any]:
    return np.append(values, np.full(count, value, values.dtype))


class StepUploader:
    """Owns the array on the device, which grows with what a step needs."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory = device.zeros("i32", 1 << 16)

    def reserve(self, arrays: list[Int32]) -> bool:
        """Makes room for `arrays`; whether all have other places than before."""
        needed = int(_starts(arrays)[-1])
        if needed <= self._memory.size:
            return False
        self._memory = self._device.zeros("i32", 2 * needed)
        return True

    def upload(self, shape: Shape, arrays: list[Int32]) -> StepArrays:
        """The arrays of a shape have the same places each time."""
        starts = _starts(arrays)
        host = np.zeros(int(starts[-1]), np.int32)
        for start, array in zip(starts, arrays):
            host[start : start + array.size] = array
        self._device.upload(host, self._memory)
        parts = (self._memory.part(int(start), array.size) for start, array in zip(starts, arrays))
        return StepArrays(shape, *parts)


def _starts(arrays: list[Int32]) -> npt.NDArray[np.int64]:
    """Where each begins, and where the last one ends: at multiples of 16 bytes."""
    return np.cumsum([0, *(padded(array.size, 4) for array in arrays)])
