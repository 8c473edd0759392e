"""Launches of mixtures of experts: the router's choice, sorting, products with the matrices of the chosen.

How many programs there are follows from the number of tokens, so that recorded steps serve whatever tokens choose.
Called by the lowering.
"""

from __future__ import annotations

from typing import Any

from qwench.checkpoint.experts import ExpertsSpec
from qwench.targets.cuda.devices.device import Device
from qwench.targets.cuda.launches.attention import power_of_two
from qwench.targets.cuda.launches.products import FEW_TOKENS, Partial, Products, choose_tile, product_arguments
from qwench.targets.cuda.memory.activations import Activation
from qwench.targets.cuda.memory.weights import TARGET_PROGRAMS, DeviceMatrix
from qwench.targets.cuda.step_arrays import StepArrays

SORTED_AT_ONCE = (128, 1024)  # rows, by few tokens and by many


class Experts:
    """Owns the rows sorted by expert, which one layer after another uses: `order` [num_tokens * top_k] and `starts`
    [num_experts + 1], int32."""

    def __init__(self, device: Device, spec: ExpertsSpec, products: Products, num_tokens: int) -> None:
        self._device, self._spec, self._products = device, spec, products
        self._order = device.zeros("i32", num_tokens * spec.top_k)
        self._starts = device.zeros("i32", spec.num_experts + 1)

    def route(self, x: Activation, router: DeviceMatrix, arrays: StepArrays, routes: Activation) -> None:
        """router: a row for each expert, and one for the shared one's gate."""
        from qwench.targets.cuda.kernels.experts import route

        spec, count = self._spec, arrays.shape.num_tokens
        self._device.launch(
            route, (count, 1, 1), positions=arrays.positions, routes=routes.values, NUM_EXPERTS=spec.num_experts,
            TOP_K=spec.top_k, HAS_SHARED=router.rows > spec.num_experts, NORMALIZES=spec.normalizes,
            WIDTH=routes.layout.width, BLOCK=power_of_two(router.rows),
            **self._products.launch(x, router, count).as_input(),
        )  # fmt: skip

    def sort(self, routes: Activation, num_tokens: int) -> None:
        """For the products that follow."""
        from qwench.targets.cuda.kernels.experts import sort_by_expert

        num_rows = num_tokens * self._spec.top_k
        few, many = SORTED_AT_ONCE
        self._device.launch(
            sort_by_expert, (self._spec.num_experts, 1, 1), routes=routes.values, order=self._order,
            starts=self._starts, num_rows=num_rows, TOP_K=self._spec.top_k, WIDTH=routes.layout.width,
            BLOCK=few if num_rows <= few else many,
        )  # fmt: skip

    def product(self, x: Activation, matrix: DeviceMatrix, num_tokens: int, rows_of_x: int) -> Partial:
        """Of each token's rows with their experts' matrices. rows_of_x: as many are of one row of x."""
        from qwench.targets.cuda.kernels.experts import expert_float_product, expert_group_product

        spec, num_rows = self._spec, num_tokens * self._spec.top_k
        tile = choose_tile(-(-num_rows // spec.num_experts), matrix, x.layout.parts, self._device.shared_bytes)
        tiles, row_tiles = most_tiles(num_rows, spec.num_experts, tile.tokens), matrix.rows_padded // tile.rows
        is_folded = num_tokens > FEW_TOKENS or tiles * row_tiles >= TARGET_PROGRAMS
        splits = 1 if is_folded else matrix.num_splits
        self._device.launch(
            expert_group_product if matrix.format.is_quantized else expert_float_product, (tiles, row_tiles, splits),
            out=self._products.memory, out_rows=num_rows, order=self._order, starts=self._starts, ROWS_OF_X=rows_of_x,
            NUM_EXPERTS=spec.num_experts, MOST_EXPERTS=power_of_two(spec.num_experts), FOLD=is_folded,
            **product_arguments(x, matrix, tile),
        )  # fmt: skip
        return Partial(self._products.memory, num_rows, matrix.rows_padded, splits)

    def weights_of_chosen(self, routes: Activation) -> dict[str, Any]:
        """By which a token's rows are multiplied when they are added: arguments of rms_norm."""
        return self._weights(routes, self._spec.top_k, self._spec.top_k)

    def weight_of_shared(self, routes: Activation) -> dict[str, Any]:
        return self._weights(routes, 2 * self._spec.top_k, 1)

    def _weights(self, routes: Activation, first: int, count: int) -> dict[str, Any]:
        weights = routes.values.part(first, routes.values.size - first)
        return {"weights": weights, "WEIGHTED": count, "WEIGHTS_WIDTH": routes.layout.width}


def most_tiles(num_rows: int, num_experts: int, tokens_per_tile: int) -> int:
    """That rows fill, however they are spread over the experts: each expert's last tile may have one row."""
    used = min(num_rows, num_experts)
    return used + (num_rows - used) // tokens_per_tile
