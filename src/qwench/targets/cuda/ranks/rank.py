"""A rank with a device of its own: the executor of its share of a Program, and what it has in common with the others.

Steps are computed by all ranks at once, which meet in `gather` ops. All take the same decisions, since they have the
same batch; the first has the results. Made by the target.
"""

from __future__ import annotations

from collections.abc import Mapping

from qwench.errors import TargetError
from qwench.lora.adapter import LoraAdapter
from qwench.program.memory import MemoryPlan
from qwench.program.ops import Program
from qwench.targets.cpu._native import Team as NativeTeam
from qwench.targets.cuda.devices.device import Device
from qwench.targets.cuda.executor import CudaExecutor
from qwench.targets.cuda.launches.likeliest import has_one_largest, put_best
from qwench.targets.cuda.lowering import Step
from qwench.targets.cuda.ranks.logit_gather import LogitGather
from qwench.targets.cuda.step_arrays import Shape
from qwench.targets.target import Array, CacheConfig, Channel, Float32, Int32, StepBatch, Team

_PAGE = 4096
_MOST_WINDOW_BYTES = 16 << 20


class CudaRank(CudaExecutor):
    """program: sharded (program/shard.py)."""

    def __init__(
        self, device: Device, program: Program, plan: MemoryPlan, tensors: Mapping[str, Array], cache: CacheConfig,
        team: Team,
    ) -> None:  # fmt: skip
        if team.link is not None:
            raise TargetError("GPUs of several hosts don't compute together yet; start one process without mpiexec")
        self._memory = team.memory  # which native code keeps the address of
        self._team = _native_team(team)
        self._communicator = device.communicator(self._team, team.rank, len(team.threads))
        super().__init__(device, program, plan, tensors, cache, self._communicator)
        self._logit_gather: LogitGather | None = self._make_logit_gather()

    def _make_logit_gather(self) -> LogitGather | None:
        gathers = self._lowering.gathers
        assert gathers is not None
        op = gathers.of_logits
        return None if op is None else LogitGather(self._device, self._communicator, gathers, op)

    @property
    def channel(self) -> Channel:
        return self._team

    def invitation(self) -> bytes:
        return self._communicator.invitation()

    def join(self, invitation: bytes) -> None:
        self._communicator.join(invitation)

    def step(
        self, batch: StepBatch, logits: Float32 | None = None, hidden: Float32 | None = None,
        maxima: Float32 | None = None,
    ) -> Float32:  # fmt: skip
        try:
            return super().step(batch, logits, hidden, maxima)
        except BaseException:
            self._communicator.close()  # before memory is freed, which waits for what runs on the device
            raise

    def set_adapter(self, number: int, adapter: LoraAdapter | None) -> None:
        if adapter is not None:
            raise TargetError("several GPUs run no LoRA adapters; merge one (compile --lora), or take one GPU")

    def _grow(self, shape: Shape, arrays: list[Int32]) -> None:
        super()._grow(shape, arrays)
        if self._logit_gather is not None and self._logit_gather.reserve(shape.num_logits):
            self._recorded.clear()

    def _launch_likeliest(self, step: Step) -> None:
        if self._logit_gather is not None and step.arrays.shape.num_logits:
            self._logit_gather.launch_top(step.arrays.shape.num_logits)

    def _download(
        self, step: Step, logits: Float32, maxima: Float32 | None, hidden: Float32 | None, is_greedy: bool
    ) -> None:
        if self._logit_gather is not None and len(logits):
            self._download_logits(self._logit_gather, step.arrays.shape.num_logits, logits, maxima, is_greedy)
        if self._communicator.rank == 0:
            self._download_hidden(step, hidden)
        else:
            self._device.synchronize()  # where a failure shows

    def _download_logits(
        self, gather: LogitGather, num_launched: int, logits: Float32, maxima: Float32 | None, is_greedy: bool
    ) -> None:
        """num_launched: rows that fill up a batch included."""
        found, best = gather.download_top(num_launched, self._maxima.shape[1])
        found, best = found[: len(logits)], best[: len(logits)]
        if maxima is not None:
            maxima[: len(logits)] = found
        if is_greedy and has_one_largest(found):
            put_best(logits, found, best)
            return
        gather.launch_all(num_launched, self._logits)
        if self._communicator.rank == 0:
            self._device.download(self._logits, logits)

    def close(self) -> None:
        self._communicator.close()
        self._logit_gather = None
        super().close()


def _native_team(team: Team) -> NativeTeam:
    """One thread of each rank takes part. What the cpu target has activations in is the window here."""
    address, num_bytes = team.memory.ctypes.data, team.memory.nbytes
    window = (num_bytes - team.mail_bytes) // _PAGE * _PAGE - 3 * _PAGE
    threads = [1] * len(team.threads)
    return NativeTeam((address, num_bytes, team.mail_bytes, team.rank, threads), min(window, _MOST_WINDOW_BYTES))
