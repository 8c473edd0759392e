"""The cuda target where there is no GPU, an old one, or one that fails: a stand-in for libcuda says what it would."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from fake_cuda import GONE, NO_DEVICE, OUT_OF_MEMORY, gpu
from tiny_checkpoint import CONFIG

from qwench.checkpoint.spec import ModelSpec
from qwench.config import QwenchConfig
from qwench.errors import CapacityError, TargetError
from qwench.targets import cuda
from qwench.targets.cuda.devices.device import DeviceArray
from qwench.targets.registry import default_target


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
