"""A device that only notes what is launched, and the programs whose launches the compilers are tried on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qwench.checkpoint.spec import ModelSpec
from qwench.formats import Format
from qwench.lora.adapter import LoraAdapter, LoraPair
from qwench.program.memory import plan_memory
from qwench.program.models import adaptable_shapes, build_program
from qwench.program.ops import PRODUCTS, Program
from qwench.program.passes import fuse, set_formats
from qwench.program.shard import Shares, shard
from qwench.targets.cpu.target import CpuTarget
from qwench.targets.cuda.devices.compilation import Variant, variant_of
from qwench.targets.cuda.devices.device import NUMPY_DTYPES, Communicator, DeviceArray, Grid, HostArray, Replay
from qwench.targets.cuda.executor import CudaExecutor
from qwench.targets.target import Array, CacheConfig, StepBatch

SHAPE = {  # a layer of Qwen2.5-7B, with a smaller vocabulary
    "model_type": "qwen2", "vocab_size": 2048, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 1,
    "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 8192, "rope_theta": 1e6,
    "tie_word_embeddings": False,
}  # fmt: skip
MIXTURE = SHAPE | {  # a layer of Qwen1.5-MoE-A2.7B, with fewer experts
    "model_type": "qwen2_moe", "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 16,
    "num_experts": 6, "num_experts_per_tok": 4, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
}  # fmt: skip


class RecordingDevice:
    """Gives out addresses of no memory. launched: kernels and variants, each once, in order."""

    name, shared_bytes = "a device that records", 163 << 10  # an A100's

    def __init__(self) -> None:
        self.launched: dict[tuple[Any, Variant], None] = {}
        self._next = 1 << 20

    def zeros(self, dtype: str, *shape: int) -> DeviceArray:
        address = self._next
        self._next += -(-math.prod(shape) * np.dtype(NUMPY_DTYPES[dtype]).itemsize // 256) * 256
        return DeviceArray(address, dtype, shape, None)

    def upload(self, values: HostArray, to: DeviceArray) -> None:
        pass

    def download(self, source: DeviceArray, to: HostArray) -> None:
        pass

    def copy(self, source: DeviceArray, to: DeviceArray) -> None:
        pass

    def launch(self, kernel: Any, grid: Grid, *, num_warps: int = 4, num_stages: int = 3, **arguments: Any) -> None:
        assert all(size > 0 for size in grid)
        self.launched[kernel, variant_of(kernel, arguments, num_warps, num_stages)] = None

    def synchronize(self) -> None:
        pass

    def communicator(self, team: object, rank: int, size: int) -> Communicator:
        raise NotImplementedError

    def record(self, launches: Callable[[], None]) -> Replay:
        return launches

    def close(self) -> None:
        pass


def shape_program(shape: dict[str, Any], fmt: Format, activations: str) -> Program:
    return set_formats(fuse(build_program(ModelSpec.from_config(shape))), lambda weight: fmt, activations)


def launches_of(
    fmt: Format, activations: str, cache_dtype: str, num_tokens: tuple[int, ...], shared_bytes: int = 163 << 10,
    shape: dict[str, Any] = SHAPE,
) -> list[tuple[Any, Variant]]:  # fmt: skip
    """What is launched to load a layer of a shape and to compute a prompt of each of these lengths, with an
    adapter."""
    program, packer, device = shape_program(shape, fmt, activations), CpuTarget(), RecordingDevice()
    device.shared_bytes = shared_bytes
    tensors = {
        tensor.name: np.zeros(tensor.shape, tensor.dtype)
        for weight in program.weights.values()
        for tensor in packer.packed_tensors(weight)
    }
    cache = CacheConfig(64, 32, cache_dtype, rounds_queries=activations == cache_dtype == "bf16")
    executor = CudaExecutor(device, program, plan_memory(program, 512), tensors, cache)
    executor.set_adapter(0, adapter_of(program, rank=24))
    for count in num_tokens:
        executor.step(dataclasses.replace(one_prompt(count, 1024), adapters=np.zeros(1, np.int32)))
    return list(device.launched) + _joins(program, tensors, cache)


class Unheard:
    """The communicator of the first of two ranks, where the other one isn't."""

    rank, size = 0, 2

    def invitation(self) -> bytes:
        return b""

    def join(self, invitation: bytes) -> None:
        pass

    def all_gather(self, source: DeviceArray, to: DeviceArray) -> None:
        assert source.size * self.size == to.size

    def close(self) -> None:
        pass


def _joins(program: Program, tensors: dict[str, Array], cache: CacheConfig) -> list[tuple[Any, Variant]]:
    """What a rank of two launches that one process doesn't; mixtures have no such ranks."""
    if program.spec.experts is not None:
        return []
    device, own = RecordingDevice(), shard(program, Shares((1, 1), (2,)), 0)
    executor = CudaExecutor(device, own, plan_memory(program, 512), tensors, cache, Unheard())
    executor.step(one_prompt(1, 1024))
    return [launch for launch in device.launched if launch[0].__name__ == "join_columns"]


def adapter_of(program: Program, rank: int) -> LoraAdapter:
    """Zeros for every matrix that adapters can change here."""
    shapes = adaptable_shapes(program.spec)
    multiplied = {s for op in program.ops if op.kind in PRODUCTS for s in program.weights[op.weights[0]].sources}
    pairs = {}
    for name in sorted(multiplied & set(shapes)):
        n, k = shapes[name]
        pairs[name] = LoraPair(np.zeros((rank, k), np.float32), np.zeros((n, rank), np.float32), 1.0)
    return LoraAdapter(pairs)


def one_prompt(count: int, length: int) -> StepBatch:
    """`count` tokens that end a sequence of `length`; the logits of the last."""
    return StepBatch(
        np.zeros(count, np.int32), np.array([0, count], np.int32), np.array([length], np.int32),
        np.arange(length // 32, dtype=np.int32)[None, :], np.array([count - 1], np.int32),
    )  # fmt: skip


def described(kernel: Any, variant: Variant) -> str:
    """For messages."""
    return f"{kernel.__name__} {dataclasses.asdict(variant)}"
