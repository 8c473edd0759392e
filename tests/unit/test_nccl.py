"""GPUs that compute together where there are none: a stand-in for libnccl says what it would, a thread is a rank."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeLibrary, FakeNccl, World

from qwench.errors import TargetError
from qwench.targets.cuda.devices import gpu as gpu_module
from qwench.targets.cuda.devices import nccl
from qwench.targets.cuda.devices.device import new_array
from qwench.targets.cuda.devices.driver import Driver
from qwench.targets.cuda.devices.gpu import Gpu
from qwench.targets.cuda.devices.nccl import Nccl, NcclCommunicator, load_nccl


class Team:
    """lost: the rank that was."""

    lost = -1

    def lost_rank(self) -> int:
        return self.lost


class Rank:
    """A GPU of two, with its communicator."""

    def __init__(self, rank: int, world: World, monkeypatch: pytest.MonkeyPatch, **fake: Any) -> None:
        self.nccl, self.cuda, self.team = FakeNccl(world, **fake), FakeLibrary(count=2), Team()
        self.cuda.nccl = self.nccl
        monkeypatch.setattr(gpu_module, "load_nccl", lambda: Nccl(self.nccl))
        self.gpu = Gpu(Driver(self.cuda), rank)
        self.communicator: NcclCommunicator = self.gpu.communicator(self.team, rank, 2)  # type: ignore[arg-type]

    def join(self) -> None:
        self.communicator.join(self.communicator.invitation())


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> list[Rank]:
    world = World()
    both = [Rank(rank, world, monkeypatch) for rank in range(2)]
    for rank in both:
        rank.join()
    return both


def test_each_gets_the_columns_of_all(ranks: list[Rank]) -> None:
    gathered = []
    for number, rank in enumerate(ranks):
        own, to = new_array(rank.gpu, np.full(3, number + 1, np.float32), "fp32"), rank.gpu.zeros("fp32", 2, 3)
        rank.communicator.all_gather(own, to)
        gathered.append((own, to))
    for rank, (_, to) in zip(ranks, gathered, strict=True):
        found = np.empty((2, 3), np.float32)
        rank.gpu.download(to, found)
        np.testing.assert_array_equal(found, [[1, 1, 1], [2, 2, 2]])
        rank.communicator.close()
        rank.communicator.close()
        assert rank.nccl.calls.count("ncclCommAbort") == 1


def test_a_gather_is_recorded_with_the_launches_around_it(ranks: list[Rank]) -> None:
    rank = ranks[0]
    rank.nccl.world.size = 1  # which waits for nobody
    array = rank.gpu.zeros("fp32", 1, 2)
    rank.cuda.calls.clear()
    replay = rank.gpu.record(lambda: rank.communicator.all_gather(array, array))
    assert rank.nccl.calls.count("ncclAllGather") == 2  # to connect what is new, and to record
    assert rank.cuda.calls.index("cuStreamQuery") < rank.cuda.calls.index("cuStreamBeginCapture_v2")
    rank.cuda.calls.clear()
    replay()
    assert (rank.cuda.calls, rank.nccl.calls.count("ncclAllGather")) == (["cuGraphLaunch"], 2)


@pytest.mark.parametrize("what", ["download", "upload", "synchronize"])
def test_who_waits_for_a_lost_rank_stops(what: str, ranks: list[Rank]) -> None:
    rank, host = ranks[0], np.zeros(2, np.float32)
    array = rank.gpu.zeros("fp32", 2, 2)
    rank.communicator.all_gather(array.part(0, 2), array)  # the other one never comes
    threading.Timer(0.05, lambda: setattr(rank.team, "lost", 1)).start()
    waits = {
        "download": lambda: rank.gpu.download(array, host), "upload": lambda: rank.gpu.upload(host, array),
        "synchronize": rank.gpu.synchronize,
    }  # fmt: skip
    with pytest.raises(TargetError, match="a rank was lost"):
        waits[what]()
    assert rank.nccl.calls[-1] == "ncclCommAbort"  # so that the GPU isn't left waiting
    assert "cuStreamSynchronize" not in rank.cuda.calls


def test_what_nccl_finds_out_itself_is_told(ranks: list[Rank]) -> None:
    rank = ranks[0]
    array = rank.gpu.zeros("fp32", 2, 2)
    rank.communicator.all_gather(array.part(0, 2), array)
    rank.nccl.async_error = 6
    with pytest.raises(TargetError, match="remote process exited or there was a network error, in a collective"):
        rank.gpu.synchronize()
    assert rank.nccl.calls[-1] == "ncclCommAbort"


def test_a_refused_gather_ends_the_communicator(ranks: list[Rank]) -> None:
    rank = ranks[0]
    rank.nccl.failing["ncclAllGather"] = 2
    array = rank.gpu.zeros("fp32", 2, 2)
    with pytest.raises(TargetError, match="system error, in ncclAllGather; load the model again"):
        rank.communicator.all_gather(array, array)
    assert rank.nccl.calls[-1] == "ncclCommAbort"


def test_joining_fails_and_joining_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TargetError, match="system error, in ncclCommInitRank"):
        Rank(0, World(), monkeypatch, ncclCommInitRank=2).join()
    waiting = threading.Event()
    rank = Rank(0, World(), monkeypatch, stall=waiting.wait)
    rank.team.lost = 1
    start = time.monotonic()
    with pytest.raises(TargetError, match="a rank was lost"):
        rank.join()
    assert time.monotonic() - start < 10
    waiting.set()


def test_fewer_gpus_than_ranks() -> None:
    with pytest.raises(TargetError, match=r"rank 1 needs a GPU of its own, and the driver shows 1 .*CUDA_VISIBLE"):
        Gpu(Driver(FakeLibrary()), 1)
    with pytest.raises(TargetError, match="2 ranks need a GPU each, and the driver shows 1 to this process"):
        Gpu(Driver(FakeLibrary())).communicator(Team(), 0, 2)  # type: ignore[arg-type]


def test_each_rank_takes_its_own_gpu(ranks: list[Rank], monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(FakeLibrary, "_cuDeviceGet", lambda self, device, n: taken.append(n.value), raising=False)
    Gpu(Driver(FakeLibrary(count=4)), 3)
    assert taken == [3]


def test_no_library_and_an_old_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"version code 2808; 2\.9 or newer"):
        Nccl(FakeNccl(World(), version=2808))
    monkeypatch.setattr(nccl, "LIBRARY", "libnccl-missing.so.2")
    monkeypatch.setattr(nccl, "find_spec", lambda name: None)
    with pytest.raises(TargetError, match=r"several GPUs need NCCL, .*pip install nvidia-nccl-cu12"):
        load_nccl()
    found = tmp_path / "nccl" / "lib" / nccl.LIBRARY
    found.parent.mkdir(parents=True)
    found.write_bytes(b"")
    monkeypatch.setattr(nccl, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    opened: list[str] = []

    def open_library(path: str) -> FakeNccl:
        opened.append(path)
        if not Path(path).exists():
            raise OSError(path)
        return FakeNccl(World())

    monkeypatch.setattr(nccl.ctypes, "CDLL", open_library)
    load_nccl()
    assert opened == [nccl.LIBRARY, str(found)]
