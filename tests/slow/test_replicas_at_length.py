"""Two replicas under load for a while: one is killed, then its engine, then all are replaced by newer ones."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from server_process import wait_for

pytest.importorskip("ray.serve", reason='replicas need pip install "qwench[ray]"')

from ray_cluster import RayCluster, running_cluster

SMALL = ("replicas=2", "name=tiny")  # a processor each, which are all there are
NUM_CLIENTS = 16
BACK_S = 15.0  # after a replica was killed, until throughput is what it was before
WINDOW_S = 3.0  # over which throughput is measured
LONGEST_S = 60.0  # a request that takes longer hangs


@pytest.fixture(scope="module")
def cluster(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with running_cluster(artifact, tmp_path_factory.mktemp("ray") / "log", *SMALL) as cluster:
        yield cluster


class Load:
    """Clients that ask one question after the other, half of them for streams. ends: (seconds on the monotonic clock,
    how the request ended). whole: answers that were complete."""

    def __init__(self, url: str) -> None:
        self._url, self._stop = url, threading.Event()
        self.ends: list[tuple[float, str]] = []
        self.slowest_s = 0.0
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(NUM_CLIENTS)]

    def _ask(self, number: int) -> None:
        body = {"model": "tiny", "max_tokens": 40, "ignore_eos": True, "stream": number % 2 == 0}
        with httpx.Client(base_url=self._url, timeout=LONGEST_S) as client:
            turn = 0
            while not self._stop.is_set():
                turn += 1
                start = time.monotonic()
                end = self._one(client, {**body, "prompt": f"Question {turn} of {number}: {'why, ' * 60}"})
                self.slowest_s = max(self.slowest_s, time.monotonic() - start)
                self.ends.append((time.monotonic(), end))

    def _one(self, client: httpx.Client, body: dict[str, object]) -> str:
        try:
            answer = client.post("/v1/completions", json=body)
        except httpx.TransportError as error:
            return type(error).__name__
        if answer.status_code != 200:
            return str(answer.status_code)
        return "whole" if '"length"' in answer.text else "told"

    def rate(self, since: float, until: float) -> float:
        """Whole answers a second."""
        return sum(end == "whole" and since <= when < until for when, end in self.ends) / (until - since)

    def failures(self, since: float) -> Counter[str]:
        return Counter(end for when, end in self.ends if when >= since and end != "whole")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(LONGEST_S)
        assert not any(thread.is_alive() for thread in self._threads)


def test_throughput_is_back_soon_after_a_replica_was_killed(cluster: RayCluster) -> None:
    load = Load(cluster.url)
    with load.running():
        time.sleep(10)
        killed = time.monotonic()
        engine, replica = next(iter(cluster.engines().items()))
        os.kill(replica, signal.SIGKILL)
        wait_for(lambda: engine not in cluster.engines(), timeout_s=5)
        time.sleep(WINDOW_S)
        before = load.rate(killed - 2 * WINDOW_S, killed)
        wait_for(lambda: load.rate(time.monotonic() - WINDOW_S, time.monotonic()) >= 0.8 * before, timeout_s=60)
        back_s = time.monotonic() - killed
        wait_for(lambda: len(cluster.engines()) == 2, timeout_s=60)
        settled = time.monotonic()
        time.sleep(8)
    print(f"{before:.1f}/s before, {back_s:.1f} s until 0.8 of it; {dict(load.failures(0))}")
    assert back_s < BACK_S
    assert load.failures(0).keys() <= {"told"}, load.failures(0)  # streams that had begun
    assert load.failures(0)["told"] <= NUM_CLIENTS / 2
    assert not load.failures(settled)
    assert load.slowest_s < LONGEST_S


def test_an_engine_that_is_killed_is_started_again_by_its_replica(cluster: RayCluster) -> None:
    load = Load(cluster.url)
    with load.running():
        time.sleep(4)
        engine, replica = next(iter(cluster.engines().items()))
        os.kill(engine, signal.SIGKILL)
        wait_for(lambda: replica in cluster.engines().values() and engine not in cluster.engines(), timeout_s=30)
        time.sleep(6)
    assert load.failures(0).keys() <= {"told"} and load.failures(0)["told"] <= NUM_CLIENTS / 2, load.failures(0)
    assert load.slowest_s < LONGEST_S


def test_an_update_loses_no_request(cluster: RayCluster) -> None:
    before = set(cluster.engines())
    load = Load(cluster.url)
    with load.running():
        time.sleep(3)
        cluster.update(*SMALL, "max_queued=64")
        wait_for(lambda: len(set(cluster.engines()) - before) == 2 and not before & set(cluster.engines()), 180)
        time.sleep(3)
    assert not load.failures(0)
    assert load.slowest_s < LONGEST_S


def test_replicas_are_started_while_requests_wait(cluster: RayCluster) -> None:
    """And the one that is left is a newer one: an update changes how many there may be, too."""
    old = set(cluster.engines())
    cluster.update("min_replicas=1", "max_replicas=2", "target_ongoing_requests=2", "name=tiny")
    wait_for(lambda: len(cluster.engines()) == 1 and not old & set(cluster.engines()), timeout_s=240)
    load = Load(cluster.url)
    with load.running():
        wait_for(lambda: len(cluster.engines()) == 2, timeout_s=180)  # Ray waits half a minute before it believes it
    assert not load.failures(0)


def test_a_replica_may_have_several_ranks(cluster: RayCluster) -> None:
    """They end with it, however it ends."""
    old = set(cluster.engines())
    cluster.update("replicas=1", "tensor_parallel_size=2", "num_cpus=2", "name=tiny")
    wait_for(lambda: len(cluster.engines()) == 1 and not old & set(cluster.engines()), timeout_s=240)
    wait_for(cluster.is_ready, timeout_s=60)
    [(engine, replica)] = cluster.engines().items()
    ranks = [int(pid) for pid in Path(f"/proc/{engine}/task/{engine}/children").read_text().split()]
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 8, "ignore_eos": True}
    assert httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=60).json()["usage"]["completion_tokens"] == 8
    os.kill(replica, signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in (engine, *ranks)), timeout_s=10)
    assert len(ranks) == 1
    wait_for(lambda: len(cluster.engines()) == 1 and cluster.is_ready(), timeout_s=120)
    assert httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=60).status_code == 200
