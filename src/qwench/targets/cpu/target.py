"""The cpu target: packs matrices into panels of 64 columns (one layout for all kernel variants) and loads executors.

The layout is described in native/kernels/kernel_table.h. An artifact packed on one processor runs on any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qwench.errors import CapacityError
from qwench.program.memory import MemoryPlan
from qwench.program.ops import Program, Weight
from qwench.quantized_matrix import QuantizedMatrix
from qwench.targets.cpu.executor import CpuExecutor
from qwench.targets.cpu.pack import pack_codes, pack_floats, packed_bytes
from qwench.targets.cpu.variants import choose_variant, variants_of
from qwench.targets.target import Array, CacheConfig, Executor, PackedTensor, Team


class CpuTarget:
    """`name` is one of the package's NAMES. variant: the kernels that it must use, by default the fastest here."""

    layout = "cpu-panel64-v3"

    def __init__(self, name: str = "cpu", variant: str | None = None) -> None:
        self.name = name
        self._variant, self._first = variant, variants_of(name)[0]

    def packed_tensors(self, weight: Weight) -> list[PackedTensor]:
        size = -(-weight.shape[0] * 4 // 64) * 64 if weight.is_vector else packed_bytes(weight)
        return [PackedTensor(weight.name, "uint8", (size,))]

    def pack(self, weight: Weight, sources: Sequence[Array | QuantizedMatrix], out: Mapping[str, Array]) -> None:
        packed = out[weight.name]
        if any(isinstance(s, QuantizedMatrix) for s in sources):
            pack_codes(weight, [s for s in sources if isinstance(s, QuantizedMatrix)], packed)
            return
        floats = [s for s in sources if not isinstance(s, QuantizedMatrix)]
        if weight.is_vector:
            values = np.concatenate([s.astype(np.float32) for s in floats]).view(np.uint8)
            packed[: values.size] = values
            packed[values.size :] = 0
        else:
            pack_floats(weight, floats, packed, self._variant or self._first)

    def kernel_choice(self, program: Program) -> str:
        return self._variant or str(choose_variant(self.name, program))

    def load(
        self, program: Program, plan: MemoryPlan, tensors: Mapping[str, Array], cache: CacheConfig, num_threads: int,
        team: Team | None = None,
    ) -> Executor:  # fmt: skip
        variant = self._variant or choose_variant(self.name, program).variant
        try:
            return CpuExecutor(variant, program, plan, tensors, cache, num_threads, team)
        except (MemoryError, RuntimeError) as error:  # std::bad_alloc, and std::system_error of a thread
            raise CapacityError(
                f"the system refused memory or one of {num_threads} threads ({error}); take fewer threads, a smaller "
                "max_seq_len or fewer cache blocks"
            ) from None
