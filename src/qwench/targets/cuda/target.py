"""The cuda target: artifacts are those of the cpu target; loading repacks their weights on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qwench.program.memory import MemoryPlan
from qwench.program.ops import Program, Weight
from qwench.quantized_matrix import QuantizedMatrix
from qwench.targets.cpu.target import CpuTarget
from qwench.targets.cuda.devices.device import Device
from qwench.targets.target import Array, CacheConfig, Executor, PackedTensor, Team

MODEL_SHARE = 0.9  # of the free memory


class CudaTarget:
    """`name` is one of the package's NAMES. Packing needs no GPU, so that models are compiled where there is none."""

    layout = CpuTarget.layout

    def __init__(self, name: str, *, is_interpreted: bool) -> None:
        self.name, self._is_interpreted, self._packer = name, is_interpreted, CpuTarget()

    def packed_tensors(self, weight: Weight) -> list[PackedTensor]:
        return self._packer.packed_tensors(weight)

    def pack(self, weight: Weight, sources: Sequence[Array | QuantizedMatrix], out: Mapping[str, Array]) -> None:
        self._packer.pack(weight, sources, out)

    def kernel_choice(self, program: Program) -> str:
        return f"triton on {self.open_device().name}"

    def load(
        self, program: Program, plan: MemoryPlan, tensors: Mapping[str, Array], cache: CacheConfig, num_threads: int,
        team: Team | None = None,
    ) -> Executor:  # fmt: skip
        if team is not None:
            from qwench.targets.cuda.ranks.rank import CudaRank

            return CudaRank(self.open_device(team.rank), program, plan, tensors, cache, team)
        from qwench.targets.cuda.executor import CudaExecutor

        return CudaExecutor(self.open_device(), program, plan, tensors, cache)

    def available_bytes(self) -> int:
        """What is free on the device, less what kernels, partial sums and the driver itself take."""
        return int(self.open_device().free_bytes * MODEL_SHARE)

    def open_device(self, rank: int = 0) -> Device:
        """That of a rank. Raises TargetError where there is none that this can use."""
        if self._is_interpreted:
            from qwench.targets.cuda.devices.interpreter import make_interpreter

            return make_interpreter()
        from qwench.targets.cuda.devices.gpu import open_gpu

        return open_gpu(rank)
