"""The cuda target where there is no GPU, an old one, or one that fails: a stand-in for libcuda says what it would."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import CONFIG

from qwench.checkpoint.spec import ModelSpec
from qwench.config import QwenchConfig
from qwench.errors import CapacityError, TargetError
from qwench.targets import cuda
from qwench.targets.cuda.device import DeviceArray
from qwench.targets.cuda.driver import Driver
from qwench.targets.cuda.gpu import Gpu
from qwench.targets.registry import default_target

OUT_OF_MEMORY, NO_DEVICE, GONE = 2, 100, 46


class FakeLibrary:
    """libcuda over the host's memory. failing: what functions return instead of doing it; calls: names, in order."""

    def __init__(self, capability: tuple[int, int] = (9, 0), count: int = 1, **failing: int) -> None:
        self.capability, self.count, self.failing = capability, count, failing
        self.calls: list[str] = []
        self.memory: dict[int, Any] = {}

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.failing:
                return self.failing[name]
            return int(getattr(self, f"_{name}", lambda *_: 0)(*arguments) or 0)

        return call

    def _cuGetErrorName(self, result: int, text: Any) -> None:
        text._obj.value = b"CUDA_ERROR_DEVICE_UNAVAILABLE"

    def _cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = self.count

    def _cuDeviceGetName(self, text: Any, size: int, device: Any) -> None:
        text.value = b"Fake H100"

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> None:
        value._obj.value = {75: self.capability[0], 76: self.capability[1], 97: 227 << 10}[attribute]

    def _cuMemGetInfo_v2(self, free: Any, total: Any) -> None:
        free._obj.value, total._obj.value = 70 << 30, 80 << 30

    def _cuMemAlloc_v2(self, address: Any, size: Any) -> None:
        memory = ctypes.create_string_buffer(b"\xff" * size.value, size.value)
        address._obj.value = ctypes.addressof(memory)
        self.memory[address._obj.value] = memory

    def _cuMemFree_v2(self, address: Any) -> None:
        del self.memory[address.value]

    def _cuMemsetD8Async(self, address: Any, value: Any, size: Any, stream: Any) -> None:
        ctypes.memset(address.value, value.value, size.value)

    def _cuMemcpyHtoDAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> None:
        ctypes.memmove(to.value, source.value, size.value)

    def _cuMemcpyDtoHAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> None:
        ctypes.memmove(to.value, source.value, size.value)

    _cuMemcpyDtoDAsync_v2 = _cuMemcpyHtoDAsync_v2


def gpu(**fake: Any) -> tuple[Gpu, FakeLibrary]:
    library = FakeLibrary(**fake)
    return Gpu(Driver(library)), library


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this processor has a GPU beside it")
def test_without_a_driver_the_command_line_says_so_in_a_line() -> None:
    command = [sys.executable, "-m", "qwench.cli.main", "run", "models/qwench-tiny", "--target", "cuda", "-p", "a"]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 2
    assert "there is no NVIDIA driver here" in run.stderr
    assert "--target cpu" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("fake", "error", "message"),
    [
        ({"cuInit": NO_DEVICE}, TargetError, "no GPU that it shows"),
        ({"count": 0}, TargetError, "no GPU that it shows"),
        ({"capability": (7, 5)}, TargetError, "compute capability 7.5; the target cuda needs 8.0"),
        ({"cuInit": GONE}, TargetError, "CUDA_ERROR_DEVICE_UNAVAILABLE in cuInit"),
        ({"cuDevicePrimaryCtxRetain": OUT_OF_MEMORY}, CapacityError, "too little memory"),
    ],
    ids=["driver without GPUs", "no visible GPU", "old GPU", "failing driver", "no room for a context"],
)  # fmt: skip
def test_what_cannot_be_used_is_a_typed_error(fake: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gpu(**fake)


def test_memory_is_zero_copied_and_freed() -> None:
    device, library = gpu()
    assert device.name == "Fake H100"
    assert device.free_bytes == 70 << 30
    array = device.zeros("fp32", 3, 2)
    values, back = np.arange(6, dtype=np.float32), np.full(6, 9, np.float32)
    device.download(array, back)
    assert not back.any()
    device.upload(values, array)
    device.download(array.part(2, 2), back[:2])
    np.testing.assert_array_equal(back[:2], [2, 3])
    other = device.zeros("fp32", 3, 2)
    device.copy(array, other)
    device.download(other, back)
    np.testing.assert_array_equal(back, values)
    assert len(library.memory) == 2
    del array, other
    assert not library.memory


def test_too_little_memory_is_a_capacity_error_and_a_lost_gpu_a_target_error() -> None:
    device, library = gpu()
    library.failing["cuMemAlloc_v2"] = OUT_OF_MEMORY
    with pytest.raises(CapacityError, match="lower kvcache_num_blocks"):
        device.zeros("fp32", 1 << 20)
    array = DeviceArray(0, "fp32", (1,), None)
    library.failing["cuMemcpyDtoHAsync_v2"] = GONE
    with pytest.raises(TargetError, match="nvidia-smi"):
        device.download(array, np.zeros(1, np.float32))


def test_launches_are_recorded_once_and_replayed_as_one() -> None:
    device, library = gpu()
    launches: list[None] = []
    replay = device.record(lambda: launches.append(None))
    assert len(launches) == 2  # to compile what is new, and to record
    library.calls.clear()
    replay()
    replay()
    assert library.calls == ["cuGraphLaunch", "cuGraphLaunch"]
    assert len(launches) == 2


@pytest.mark.parametrize(("device", "target", "activations"), [("/dev/null", "cuda", "bf16"), ("/no", "cpu", "fp32")])
def test_a_machine_with_a_gpu_takes_it(
    device: str, target: str, activations: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "_DRIVER_DEVICES", (device,))
    monkeypatch.setattr(cuda, "find_spec", lambda name: object())
    assert default_target() == target
    resolved = QwenchConfig().resolve(ModelSpec.from_config(CONFIG))
    assert (resolved.target, resolved.activations) == (target, activations)
    assert QwenchConfig(target="cpu").resolve(ModelSpec.from_config(CONFIG)).activations == "fp32"
