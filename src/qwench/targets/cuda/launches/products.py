"""Launches of products: which tile, and whether the parts of K have programs of their own.

Both are chosen by the number of tokens and don't show in the bits (kernels/product.py); how K is cut is the matrix's.
Called by the lowering.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qwench.targets.cuda.devices.device import Device, DeviceArray
from qwench.targets.cuda.memory.activations import Activation
from qwench.targets.cuda.memory.weights import TARGET_PROGRAMS, DeviceMatrix, padded

FEW_TOKENS = 128  # up to which parts of K may be computed apart
BLOCK_K = 64  # values of K in a step of bf16 weights


@dataclass(frozen=True)
class Partial:
    """What a product left: sums over parts of K, [splits, num_rows, width] fp32."""

    sums: DeviceArray
    num_rows: int
    width: int
    splits: int

    def as_input(self) -> dict[str, Any]:
        """Arguments of kernels that begin with `load_sum`."""
        return {
            "partial": self.sums, "partial_rows": self.num_rows, "PARTIAL_WIDTH": self.width, "SPLITS": self.splits,
        }  # fmt: skip


@dataclass(frozen=True)
class Tile:
    """What a program computes, and with what: rows of the matrix, tokens, warps, and steps loaded in advance."""

    rows: int
    tokens: int
    num_warps: int
    num_stages: int


def choose_tile(num_tokens: int, matrix: DeviceMatrix, parts: int, shared_bytes: int) -> Tile:
    """The widest that tokens fill and whose stages fit into `shared_bytes`, of a processor of the device."""
    tokens = next((size for size in (16, 32, 64) if num_tokens <= size), 128)
    step = matrix.format.group_size or BLOCK_K
    itemsize = 1 if matrix.format.is_quantized else 2
    while True:
        rows = 128 if tokens == 128 else 64
        stage = step * (rows * itemsize + parts * tokens * 2)
        if tokens == 16 or 3 * stage <= shared_bytes:
            return Tile(rows, tokens, 8 if rows == 128 else 4, min(4, max(shared_bytes // stage - 1, 2)))
        tokens //= 2


class Products:
    """Owns the memory of partial sums, which one product after another uses."""

    def __init__(self, device: Device, matrices: list[DeviceMatrix], max_rows: int) -> None:
        self._device, self._max_rows = device, max_rows
        self.memory = device.zeros("fp32", max(self._num_sums(matrix, 0) for matrix in matrices))

    def _num_sums(self, matrix: DeviceMatrix, more_parts: int) -> int:
        few = padded(min(self._max_rows, FEW_TOKENS), 128)
        rows = max(self._max_rows * (1 + more_parts), few * (matrix.num_splits + more_parts))
        return matrix.rows_padded * matrix.top_k * rows

    def reserve_part(self, matrices: list[DeviceMatrix]) -> None:
        """Makes room for one more part of these matrices' sums, in another place if need be."""
        needed = max((self._num_sums(matrix, 1) for matrix in matrices), default=0)
        if needed > self.memory.size:
            self.memory = self._device.zeros("fp32", needed)

    def launch(self, x: Activation, matrix: DeviceMatrix, num_tokens: int, out: DeviceArray | None = None) -> Partial:
        """Products of the first rows of x. out: [at least num_tokens padded to 128, rows_padded], in place of the
        memory that the next product overwrites; for matrices with one part."""
        from qwench.targets.cuda.kernels.product import float_product, group_product

        tile = choose_tile(num_tokens, matrix, x.layout.parts, self._device.shared_bytes)
        token_tiles, row_tiles = -(-num_tokens // tile.tokens), matrix.rows_padded // tile.rows
        is_folded = num_tokens > FEW_TOKENS or token_tiles * row_tiles >= TARGET_PROGRAMS
        splits = 1 if is_folded else matrix.num_splits
        rows = token_tiles * tile.tokens
        sums = self.memory if out is None else out
        self._device.launch(
            group_product if matrix.format.is_quantized else float_product, (token_tiles, row_tiles, splits), out=sums,
            out_rows=rows, FOLD=is_folded, **product_arguments(x, matrix, tile),
        )  # fmt: skip
        return Partial(sums, rows, matrix.rows_padded, splits)


def product_arguments(x: Activation, matrix: DeviceMatrix, tile: Tile) -> dict[str, Any]:
    """Those of kernels that multiply, of the operands and of the tile."""
    shared = {
        "x": x.values, "num_rows": x.num_rows, "N_PAD": matrix.rows_padded, "K_PAD": matrix.k_padded,
        "X_PAD": x.layout.k_padded, "K_SPLIT": matrix.k_split, "SPLITS": matrix.num_splits, "PARTS": x.layout.parts,
        "BLOCK_N": tile.rows, "BLOCK_T": tile.tokens, "num_warps": tile.num_warps, "num_stages": tile.num_stages,
    }  # fmt: skip
    if matrix.scales is None:
        return {**shared, "weight": matrix.values, "BLOCK_K": BLOCK_K}
    return {
        **shared, "codes": matrix.values, "scales": matrix.scales, "offsets": matrix.offsets or matrix.scales,
        "x_scales": x.scales, "x_sums": x.sums, "GROUP": matrix.format.group_size,
        "IS_INT4": matrix.format.kind == "int4", "DISTANCE": matrix.distance, "BIAS": matrix.code_bias,
        "HAS_OFFSETS": matrix.offsets is not None, "X_CODES": x.layout.kind == "codes",
    }  # fmt: skip
