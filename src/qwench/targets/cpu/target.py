"""The cpu target: packs matrices into panels of 64 columns (one layout for all kernel variants) and loads executors.

The layout is described in native/kernels/kernel_table.h. An artifact packed on one processor runs on any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qwench.errors import CapacityError
from qwench.host import num_cpus
from qwench.program.memory import MemoryPlan
from qwench.program.ops import Program, Weight
from qwench.targets.cpu import _native
from qwench.targets.cpu.executor import CpuExecutor
from qwench.targets.cpu.pack_codes import pack_codes
from qwench.targets.cpu.variants import choose_variant, variants_of
from qwench.targets.target import Array, CacheConfig, Executor, Float32, Int8, PackedTensor

_DTYPE_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


class CpuTarget:
    """`name` is one of the package's NAMES. variant: the kernels that it must use, by default the fastest here."""

    layout = "cpu-panel64-v3"

    def __init__(self, name: str = "cpu", variant: str | None = None) -> None:
        self.name = name
        self._variant, self._first = variant, variants_of(name)[0]

    def packed_tensors(self, weight: Weight) -> list[PackedTensor]:
        if weight.is_vector:
            return [PackedTensor(weight.name, "uint8", (-(-weight.shape[0] * 4 // 64) * 64,))]
        rows, k = weight.shape
        parts = [rows // 2, rows // 2] if weight.paired else [rows]
        size = _native.packed_bytes(weight.format.kind, parts, k, weight.format.group_size, weight.paired)
        return [PackedTensor(weight.name, "uint8", (size,))]

    def pack(self, weight: Weight, sources: Sequence[Array], out: Mapping[str, Array]) -> None:
        packed = out[weight.name]
        if weight.is_vector:
            values = np.concatenate([s.astype(np.float32) for s in sources]).view(np.uint8)
            packed[: values.size] = values
            packed[values.size :] = 0
            return
        if len({s.dtype for s in sources}) > 1:
            sources = [s.astype(np.float32) for s in sources]
        _native.pack(
            sources=[np.ascontiguousarray(s).view(np.uint8).reshape(-1) for s in sources],
            dtype=_DTYPE_NAMES[sources[0].dtype.name],
            rows=[len(s) for s in sources],
            k=weight.shape[1],
            kind=weight.format.kind,
            group_size=weight.format.group_size,
            paired=weight.paired,
            out=packed,
            variant=self._variant or self._first,
            num_threads=num_cpus(),
        )

    def pack_codes(self, weight: Weight, codes: Int8, scales: Float32, out: Mapping[str, Array]) -> None:
        out[weight.name][:] = pack_codes(codes, scales, weight.format, weight.paired)

    def kernel_choice(self, program: Program) -> str:
        return self._variant or str(choose_variant(self.name, program))

    def load(
        self, program: Program, plan: MemoryPlan, tensors: Mapping[str, Array], cache: CacheConfig, num_threads: int
    ) -> Executor:
        variant = self._variant or choose_variant(self.name, program).variant
        try:
            return CpuExecutor(variant, program, plan, tensors, cache, num_threads)
        except (MemoryError, RuntimeError) as error:  # std::bad_alloc, and std::system_error of a thread
            raise CapacityError(
                f"the system refused memory or one of {num_threads} threads ({error}); take fewer threads, a smaller "
                "max_seq_len or fewer cache blocks"
            ) from None
