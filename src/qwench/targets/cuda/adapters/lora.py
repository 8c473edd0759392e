"""LoRA adapters beside the weights: their matrices on the device, and launches that add what they change.

What they add to a product is one more part of its sums (`Partial`), the last to be added, and 0 for rows without an
adapter: such rows keep their bits. Launches find an adapter's matrices in tables on the device, so adapters come and go
while recorded steps stay. Called by the executor, and by the lowering for each product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from qwench.lora.adapter import LoraAdapter, LoraPair
from qwench.program.ops import PRODUCTS, Op, Program
from qwench.targets.adapted_products import AdaptedProduct, adapted_products
from qwench.targets.cuda.adapters.adapter_tables import MOST_SOURCES, AdapterTables
from qwench.targets.cuda.adapters.adapter_tiles import NO_ADAPTER, tile_width
from qwench.targets.cuda.devices.device import Device, DeviceArray, HostArray, new_array
from qwench.targets.cuda.launches.products import BLOCK_K, Partial, Products
from qwench.targets.cuda.memory.activations import Activation
from qwench.targets.cuda.memory.weights import K_MULTIPLE, LEAST_SPLIT, DeviceMatrix, DeviceWeights, padded
from qwench.targets.cuda.step_arrays import StepArrays
from qwench.targets.target import Array, Int32

BLOCK_R = 16  # ranks of a program, the fewest that tensor cores take; ranks are padded to it
BLOCK_N = 64  # columns of a product that a program expands to
MOST_SPLITS = 16  # parts of K that are shrunk by themselves
FIRST_SLOTS = 8  # of the tables


@dataclass(frozen=True)
class AdaptedMatrix:
    """A product that some adapter changes, or did. index: in the tables. first_rows: [sources + 1] int32, of each
    source in the matrix, and the end. max_ranks: of a source, padded."""

    index: int
    matrix: DeviceMatrix
    heights: list[int]
    first_rows: DeviceArray
    max_ranks: int

    @property
    def k_split(self) -> int:
        """By the matrix's shape alone, as a product's."""
        least = max(-(-self.matrix.k_padded // MOST_SPLITS), LEAST_SPLIT)
        return padded(least, max(K_MULTIPLE, self.matrix.format.group_size))

    @property
    def num_splits(self) -> int:
        return -(-self.matrix.k_padded // self.k_split)

    @property
    def shrunk_values(self) -> int:
        """That a row leaves."""
        return self.num_splits * len(self.heights) * self.max_ranks


class Adapters:
    """Owns the adapters' memory, and that of shrunk rows, which one product after another uses."""

    def __init__(
        self, device: Device, program: Program, weights: DeviceWeights, products: Products, max_rows: int
    ) -> None:
        self._device, self._program, self._matrices = device, program, weights.matrices
        self._products, self._max_rows = products, max_rows
        self._orders = {name: vector for name, vector in weights.vectors.items() if name.endswith(".order")}
        self._indices = {op.name: i for i, op in enumerate(op for op in program.ops if op.kind in PRODUCTS)}
        self._tables = AdapterTables(device, len(self._indices))
        self._memory: dict[int, DeviceArray] = {}  # by an adapter's number
        self._adapted: dict[str, AdaptedMatrix] = {}  # by the op's name
        self._shrunk = device.zeros("fp32", 0)

    def check(self, numbers: Int32) -> None:
        """Raises ValueError for one without an adapter."""
        if unknown := set(numbers.tolist()) - {NO_ADAPTER, *self._memory}:
            raise ValueError(f"there is no adapter of that number: {min(unknown)}")

    def set(self, number: int, adapter: LoraAdapter | None, before_moving: Callable[[], None]) -> None:
        """As Executor.set_adapter. before_moving: called before memory that launches use gets another place.

        Raises TargetError, and CapacityError where the device has too little memory; then all is as it was.
        """
        if adapter is None:
            self._drop(number)
            return
        products = list(adapted_products(self._program, adapter, self._host_orders()))  # all are checked first
        memory = self._device.zeros("bf16", sum(self._num_values(product) for product in products))
        self._reserve(products, number + 2, before_moving)
        self._drop(number)
        self._memory[number] = memory
        for product in products:
            memory = self._load(product, number + 1, memory)
        self._tables.upload()

    def _host_orders(self) -> dict[str, Array]:
        orders = {name: np.empty(vector.size, np.int32) for name, vector in self._orders.items()}
        for name, values in orders.items():
            self._device.download(self._orders[name], values)
        return {name: values.astype(np.float32) for name, values in orders.items()}

    def _drop(self, number: int) -> None:
        if self._memory.pop(number, None) is not None:
            self._tables.clear(number + 1)
            self._tables.upload()

    def _num_values(self, product: AdaptedProduct) -> int:
        k_padded = self._matrices[product.weight.name].k_padded
        pairs = zip(product.pairs, product.heights, strict=True)
        return sum(padded(pair.rank, BLOCK_R) * (k_padded + height) for pair, height in pairs if pair is not None)

    def _reserve(self, products: list[AdaptedProduct], num_slots: int, before_moving: Callable[[], None]) -> None:
        adapted = {product.op.name: self._with_room(product) for product in products}
        has_room = all(self._adapted.get(name) is matrix for name, matrix in adapted.items())
        if has_room and num_slots <= self._tables.num_slots:
            return
        before_moving()
        if num_slots > self._tables.num_slots:
            self._tables.widen(max(1 << (num_slots - 1).bit_length(), FIRST_SLOTS))
        num_values = max((matrix.shrunk_values for matrix in adapted.values()), default=0) * self._max_rows
        if num_values > self._shrunk.size:
            self._shrunk = self._device.zeros("fp32", num_values)
        self._products.reserve_part([matrix.matrix for matrix in adapted.values()])
        self._adapted |= adapted

    def _with_room(self, product: AdaptedProduct) -> AdaptedMatrix:
        """The known one, where it has room."""
        name = product.op.name
        known, ranks = self._adapted.get(name), max(padded(p.rank, BLOCK_R) for p in product.pairs if p is not None)
        if known is not None:
            return known if ranks <= known.max_ranks else replace(known, max_ranks=ranks)
        first_rows = new_array(self._device, np.cumsum([0, *product.heights]), "i32")
        matrix = self._matrices[product.weight.name]
        return AdaptedMatrix(self._indices[name], matrix, product.heights, first_rows, ranks)

    def _load(self, product: AdaptedProduct, slot: int, memory: DeviceArray) -> DeviceArray:
        """Into the memory's first values; gives the rest of it."""
        adapted = self._adapted[product.op.name]
        for source, pair in enumerate(product.pairs):
            if pair is None:
                continue
            on_device = []
            for values in _padded(product, pair, adapted.matrix.k_padded):
                on_device.append(memory.part(0, *values.shape))
                self._device.upload(values, on_device[-1])
                memory = memory.part(values.size, memory.size - values.size)
            a, b = on_device
            self._tables.write(adapted.index, slot, source, a, b, a.shape[0], pair.scale)
        return memory

    def add(self, op: Op, s: StepArrays, x: Activation, partial: Partial) -> Partial:
        """A product's sums with one more part, where an adapter changes it and rows of the step have adapters."""
        adapted = self._adapted.get(op.name)
        is_of_logits = self._program.buffers[op.inputs[0]].rows == "logits"
        rows, tiles = (
            (s.logit_adapter_rows, s.logit_adapter_tiles) if is_of_logits else (s.adapter_rows, s.adapter_tiles)
        )
        if adapted is None or not rows.size:
            return partial
        self._launch(adapted, rows, tiles, x, partial)
        return replace(partial, splits=partial.splits + 1)

    def _launch(
        self, adapted: AdaptedMatrix, rows: DeviceArray, tiles: DeviceArray, x: Activation, partial: Partial
    ) -> None:
        from qwench.targets.cuda.kernels.lora import expand, shrink

        table, matrix, sources = self._tables.of(adapted.index), adapted.matrix, len(adapted.heights)
        num_tiles, is_codes = tiles.size // 3, x.layout.kind == "codes"
        shared: dict[str, Any] = {
            "ranks": table["ranks"], "rows": rows, "tiles": tiles, "max_ranks": adapted.max_ranks, "SOURCES": sources,
            "TABLE_WIDTH": MOST_SOURCES, "BLOCK_R": BLOCK_R, "BLOCK_T": tile_width(rows.size),
        }  # fmt: skip
        self._device.launch(
            shrink, (num_tiles, sources * adapted.max_ranks // BLOCK_R, adapted.num_splits), x=x.values,
            x_scales=x.scales, a_places=table["a_places"], out=self._shrunk, num_rows=x.num_rows, out_rows=rows.size,
            X_PAD=x.layout.k_padded, K_PAD=matrix.k_padded, K_SPLIT=adapted.k_split, PARTS=x.layout.parts,
            X_CODES=is_codes, BLOCK_K=x.layout.group_size if is_codes else BLOCK_K, **shared,
        )  # fmt: skip
        out = partial.sums.part(partial.splits * partial.num_rows * partial.width, partial.num_rows, partial.width)
        self._device.launch(
            expand, (num_tiles, -(-max(adapted.heights) // BLOCK_N), sources), shrunk=self._shrunk,
            b_places=table["b_places"], factors=table["factors"], first_rows=adapted.first_rows, out=out,
            shrunk_rows=rows.size, N_PAD=partial.width, SPLITS=adapted.num_splits, BLOCK_N=BLOCK_N, num_stages=1,
            **shared,
        )  # fmt: skip


def _padded(product: AdaptedProduct, pair: LoraPair, k_padded: int) -> tuple[HostArray, HostArray]:
    """A [ranks, k_padded] and B [height, ranks], bf16, in the order of the matrix's inputs and outputs."""
    a = pair.a if product.order is None else pair.a[:, product.order]
    b = pair.b if product.row_order is None else pair.b[product.row_order]
    more = -pair.rank % BLOCK_R
    return (
        np.pad(a.astype(ml_dtypes.bfloat16), ((0, more), (0, k_padded - a.shape[1]))),
        np.pad(b.astype(ml_dtypes.bfloat16), ((0, 0), (0, more))),
    )
