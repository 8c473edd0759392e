"""Which models are loaded, with models that are counters: never more than memory holds, nobody forgotten."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from qwench.errors import ConfigError
from qwench.serve.admission import Admission
from qwench.serve.failures import ApiError
from qwench.serve.models.keep_alive import FOREVER, keep_alive_s
from qwench.serve.models.memory_shares import Need, caches, fitting
from qwench.serve.models.model_loader import ModelLoader
from qwench.serve.models.model_settings import ModelSettings, check_names
from qwench.serve.processes.supervisor import StartError
from qwench.serve.settings import ServeSettings


class FakeService:
    """A model that takes moments to start and to stop. broken: it can't be started."""

    def __init__(self, name: str, share: int, starts: bool = False, least_share: int | None = None) -> None:
        self.model = ModelSettings(
            Path(name), (name,), share=share, least_share=least_share or share, starts=starts
        )  # fmt: skip
        self.num_bytes = 0
        self.name, self.is_ready, self.broken = name, False, False
        self.is_up = False  # from the beginning of the start to the end of the stop
        self.admission = Admission(100)
        self.seconds = 0.001

    async def start(self, memory: int | None) -> None:
        assert not self.is_up and memory is not None
        self.is_up, self.num_bytes = True, memory
        await asyncio.sleep(self.seconds)
        if self.broken:
            raise StartError("its folder is gone")
        self.is_ready = True

    async def stop(self) -> None:
        self.is_ready = False
        await asyncio.sleep(self.seconds)
        self.is_up = False


def loader_of(*services: FakeService, memory: int, **settings: Any) -> ModelLoader:
    models = tuple(service.model for service in services)
    return ModelLoader(ServeSettings(models, memory=memory, **settings), services)  # type: ignore[arg-type]


async def never() -> None:
    await asyncio.sleep(3600)


@asynccontextmanager
async def using(
    loader: ModelLoader, service: FakeService, keep_alive: float | None = None,
    gone: Callable[[], Awaitable[None]] = never,
) -> AsyncIterator[None]:  # fmt: skip
    async with loader.use(service, keep_alive, gone):  # type: ignore[arg-type]
        assert service.is_ready
        yield
        assert service.is_ready


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(8))
def test_nobody_is_forgotten_and_memory_is_kept(seed: int) -> None:
    """Requests that come, leave early, or hold on with a stream, for more models than fit."""
    rng = random.Random(seed)
    services = [FakeService(str(i), share := rng.randint(1, 5), i == 0, rng.randint(1, share)) for i in range(5)]
    memory = max(5, rng.randint(5, 9))

    async def ask(loader: ModelLoader) -> str:
        await asyncio.sleep(rng.random() * 0.1)
        service, patience = rng.choice(services), rng.choice([0.0005, 0.005, 3600.0])
        try:
            async with using(loader, service, rng.choice([None, 0.0, 0.002]), lambda: asyncio.sleep(patience)):
                release = service.admission.admit(1)
                asyncio.get_running_loop().call_later(rng.random() * 0.02, release)
                await asyncio.sleep(rng.random() * 0.01)
        except ApiError as error:
            return "left" if error.status_code == 499 and patience < 3600 else "lost"
        return "served"

    async def watch() -> None:
        while True:
            assert sum(service.num_bytes for service in services if service.is_up) <= memory
            for service in services:
                assert service.is_ready or not service.admission.num_open
            await asyncio.sleep(0)

    async def test() -> None:
        for service in services:
            service.admission.max_running = 10
        loader = loader_of(*services, memory=memory)
        await loader.start()
        watcher = asyncio.create_task(watch())
        told = await asyncio.gather(*(ask(loader) for _ in range(150)))
        assert told.count("served") >= 50 and "lost" not in told
        await asyncio.sleep(0.05)
        assert not watcher.done(), watcher
        watcher.cancel()
        await loader.stop()
        assert not any(service.is_up for service in services)

    run(test)


def test_the_least_recently_used_goes_first() -> None:
    a, b, c = services = [FakeService(name, 1, starts=name != "c") for name in "abc"]

    async def test() -> None:
        loader = loader_of(*services, memory=2)
        await loader.start()
        async with using(loader, b):
            pass
        async with using(loader, a):
            pass
        async with using(loader, c):
            assert a.is_up and not b.is_up
        await loader.stop()

    run(test)


def test_less_than_a_share_is_taken_before_others_are_let_go() -> None:
    a, b, c = services = [FakeService("a", 6, True), FakeService("b", 6, False, 4), FakeService("c", 3, False, 2)]

    async def test() -> None:
        loader = loader_of(*services, memory=10)
        await loader.start()
        for service, sizes in ((b, (6, 4, 0)), (c, (0, 4, 3)), (a, (6, 0, 3)), (b, (6, 4, 0))):
            async with using(loader, service):
                assert tuple(each.num_bytes if each.is_up else 0 for each in services) == sizes
        await loader.stop()

    run(test)


def test_a_used_model_stays_and_new_requests_for_it_wait_behind_the_one_that_needs_room() -> None:
    a, b = services = [FakeService("a", 2, starts=True), FakeService("b", 2)]
    order: list[str] = []

    async def test() -> None:
        loader = loader_of(*services, memory=3)
        await loader.start()

        async def use(service: FakeService) -> None:
            async with using(loader, service):
                order.append(service.name)

        async with using(loader, a):
            tasks = [asyncio.create_task(use(b))]
            await asyncio.sleep(0.01)
            tasks += [asyncio.create_task(use(service)) for service in (a, a, b)]
            await asyncio.sleep(0.01)
            assert order == [] and a.is_up and not b.is_up
        await asyncio.gather(*tasks)
        assert order == ["b", "b", "a", "a"]
        await loader.stop()

    run(test)


def test_when_the_one_that_needed_room_leaves_the_others_go_on_at_once() -> None:
    a, b = services = [FakeService("a", 2, starts=True), FakeService("b", 2)]

    async def test() -> None:
        loader = loader_of(*services, memory=3)
        await loader.start()
        leaves = asyncio.Event()

        async def ask_b() -> None:
            with pytest.raises(ApiError) as refusal:
                async with using(loader, b, None, lambda: leaves.wait()):
                    raise AssertionError
            assert refusal.value.status_code == 499

        async def ask_a() -> None:
            async with using(loader, a):
                pass

        async with using(loader, a):
            for_b = asyncio.create_task(ask_b())
            await asyncio.sleep(0.01)
            for_a = asyncio.create_task(ask_a())
            await asyncio.sleep(0.01)
            assert not for_a.done()
            leaves.set()
            await asyncio.gather(for_a, for_b)
            assert a.is_ready and not b.is_up
        await loader.stop()

    run(test)


def test_waiting_has_a_limit_in_time_and_in_number() -> None:
    a, b = services = [FakeService("a", 2, starts=True), FakeService("b", 2)]

    async def test() -> None:
        loader = loader_of(*services, memory=3, load_timeout_s=0.05, max_queued=2)
        await loader.start()

        async def ask_b() -> int:
            with pytest.raises(ApiError) as refusal:
                async with using(loader, b):
                    raise AssertionError
            assert refusal.value.headers is not None and int(refusal.value.headers["retry-after"]) > 0
            return refusal.value.status_code

        async with using(loader, a):
            assert sorted(await asyncio.gather(*(ask_b() for _ in range(3)))) == [429, 503, 503]
        async with using(loader, a):
            pass
        await loader.stop()

    run(test)


def test_a_model_that_cannot_be_loaded_is_refused_until_it_can() -> None:
    a, b = services = [FakeService("a", 2, starts=True), FakeService("b", 2)]

    async def test() -> None:
        loader = loader_of(*services, memory=2)
        await loader.start()
        b.broken = True

        async def ask_b() -> str | None:
            with pytest.raises(ApiError) as refusal:
                async with using(loader, b):
                    raise AssertionError
            assert refusal.value.status_code == 503 and "folder" not in refusal.value.message
            return refusal.value.code

        assert await asyncio.gather(*(ask_b() for _ in range(5))) == ["model_not_loaded"] * 5
        async with using(loader, a):
            pass
        b.broken = False
        async with using(loader, b):
            pass
        await loader.stop()

    run(test)


def test_keep_alive() -> None:
    a, b = services = [FakeService("a", 1, starts=True), FakeService("b", 1, starts=True)]

    async def test() -> None:
        loader = loader_of(*services, memory=2, keep_alive_s=0.05)
        await loader.start()
        async with using(loader, a, FOREVER):
            await asyncio.sleep(0.1)
        assert not b.is_up
        await asyncio.sleep(0.1)
        assert a.is_up
        async with using(loader, a, 0.0):
            release = a.admission.admit(0)
            a.admission.num_open += 1
        await asyncio.sleep(0.02)
        assert a.is_up  # a stream goes on
        a.admission.num_open -= 1
        release()
        await asyncio.sleep(0.02)
        assert not a.is_up
        async with using(loader, a):
            pass
        await asyncio.sleep(0.02)
        assert a.is_up  # as the server says, again
        await asyncio.sleep(0.1)
        assert not a.is_up and loader.num_loads(a) == 2 and loader.is_ready  # type: ignore[arg-type]
        await loader.stop()

    run(test)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(0, 0), (5, 5), (1.5, 1.5), (-1, FOREVER), ("5m", 300), ("1h30m", 5400), ("300ms", 0.3), ("-1", FOREVER),
     ("-1m", FOREVER), ("60", 60), (" 10s ", 10), (1e300, FOREVER), ("999999999999h", FOREVER), (".5h", 1800)],
)  # fmt: skip
def test_durations(given: Any, seconds: float) -> None:
    assert keep_alive_s(given) == pytest.approx(seconds)


@pytest.mark.parametrize("given", ["", "5 minutes", "m", "5x", "--5m", True, [], {}, float("nan"), "1" * 99 + "s"])
def test_what_is_no_duration(given: Any) -> None:
    with pytest.raises(ValueError, match="duration"):
        keep_alive_s(given)


def test_shares_of_memory() -> None:
    chat, embedder, large = Need(100, 20, 200), Need(10, 5, 20), Need(190, 20, 60)
    assert fitting([chat, embedder, large], range(3), 220) == [0, 1]
    assert caches([chat, embedder], 500, is_given=True) == [200, 20]  # no more than they can use
    assert caches([chat, embedder], 165, is_given=True) == [35, 20]  # 30 are left, and 15 is what the second can use
    assert caches([chat, chat], 300, is_given=True) == [50, 50]
    assert caches([chat, embedder, large], 220, is_given=True) == [90, 20, 30]  # the last with nobody beside it
    assert caches([chat, embedder, large], 100, is_given=True)[0] == 20  # doesn't fit: what it would need
    assert caches([chat], 240, is_given=False) == [80]  # a memory that nobody gave is used up to a half
    gib = 1 << 30
    assert caches([Need(gib, gib, 100 * gib)], 100 * gib, is_given=False) == [4 * gib]


@pytest.mark.parametrize(
    ("names", "fine"),
    [([("a",), ("b",)], True), ([("a", "A"), ("b",)], True), ([("a",), ("A",)], False), ([("x/a",), ("y/a",)], True),
     ([("a",), ("a:latest",)], False), ([("a", "b"), ("c", "b")], False)],
)  # fmt: skip
def test_names_that_requests_could_not_tell_apart(names: list[tuple[str, ...]], fine: bool) -> None:
    models = [ModelSettings(Path(), own) for own in names]
    if fine:
        check_names(models)
    else:
        with pytest.raises(ConfigError, match="two models are called"):
            check_names(models)
