"""Which models are loaded: each when a request asks for it, as many as memory holds, the least used let go first.

A model that is used is never let go. One that lacks memory has its turn: models that must make room finish what they
do, and new requests for them wait behind it. Knows no HTTP but the errors. Called by models.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Literal

from qwench.host import format_bytes
from qwench.serve.failures import ApiError
from qwench.serve.models.keep_alive import FOREVER
from qwench.serve.processes.supervisor import StartError
from qwench.serve.service import Service
from qwench.serve.settings import ServeSettings

logger = logging.getLogger(__name__)

State = Literal["unloaded", "loading", "loaded"]


class Place:
    """One model's. num_bytes: of memory that it holds. num_users: requests that hold it. waiting: of those that wait
    until it is loaded, a future each.

    is_leaving: it makes room for another as soon as nobody uses it. is_stopping: its processes are about to end.
    """

    def __init__(self, service: Service, keep_alive_s: float) -> None:
        self.service, self.keep_alive_s = service, keep_alive_s
        self.state: State = "unloaded"
        self.num_users = self.num_loads = self.num_bytes = 0
        self.waiting: list[asyncio.Future[None]] = []
        self.last_used_s = 0.0
        self.is_leaving = self.is_stopping = False
        self.loading: asyncio.Task[None] | None = None
        self.expiry: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        return self.service.name

    @property
    def is_used(self) -> bool:
        """Whether requests hold it, or answers are under way that nobody holds: those of streams."""
        return self.num_users > 0 or self.service.admission.num_open > 0

    @property
    def may_go(self) -> bool:
        return self.state == "loaded" and not self.is_stopping


class ModelLoader:
    """Loads and lets go. A single model without keep_alive is there from start to end, and nobody waits for it here."""

    def __init__(self, settings: ServeSettings, services: Sequence[Service]) -> None:
        self._settings = settings
        self.is_fixed = len(services) == 1 and settings.keep_alive_s is None
        self._keep_alive_s = FOREVER if settings.keep_alive_s is None else settings.keep_alive_s
        self._places = {service: Place(service, self._keep_alive_s) for service in services}
        self._turn = asyncio.Lock()  # of the one that is making room
        self._changed = asyncio.Event()  # told to that one
        self._stopping: set[asyncio.Task[None]] = set()
        self._is_started = False
        for place in self._places.values():
            place.service.admission.on_release = functools.partial(self._rest, place)

    def state(self, service: Service) -> State:
        """What to tell clients: an engine that died is being loaded again."""
        state = self._places[service].state
        return "loading" if state == "loaded" and not service.is_ready else state

    def num_loads(self, service: Service) -> int:
        """How often it was loaded."""
        return self._places[service].num_loads

    def expires_in_s(self, service: Service) -> float | None:
        """After how long it is let go if nobody uses it any more; None: only when its memory is needed."""
        place = self._places[service]
        if self.is_fixed or place.keep_alive_s >= FOREVER:
            return None
        if place.expiry is None:
            return place.keep_alive_s
        return max(place.expiry.when() - asyncio.get_running_loop().time(), 0.0)

    def let_go(self, service: Service) -> None:
        """As a request with keep_alive 0 does that asks for nothing, whether or not the model is loaded."""
        place = self._places[service]
        place.keep_alive_s = 0.0
        self._rest(place)

    @property
    def is_ready(self) -> bool:
        """Whether a request would be served: the start is over, and some model is loaded or can be."""
        return self._is_started and any(self.state(service) != "loading" for service in self._places)

    async def start(self) -> None:
        """Loads the models that are to be there from the start. Raises StartError when one of them can't be."""
        first = [place for service, place in self._places.items() if service.model.starts]
        for place in first:
            place.state, place.num_bytes = "loading", place.service.model.share or 0
        await asyncio.gather(*map(self._start, first))
        self._is_started = True

    async def stop(self) -> None:
        """Ends all processes."""
        tasks = [place.loading for place in self._places.values() if place.loading is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._stopping, return_exceptions=True)
        await asyncio.gather(*(service.stop() for service in self._places))

    @contextlib.asynccontextmanager
    async def use(
        self, service: Service, keep_alive_s: float | None, gone: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[None]:
        """Keeps a model loaded, loading it first if need be. keep_alive_s: for how long it shall stay afterwards; None:
        as it was said before. gone: returns when the client has gone, for whom nothing is loaded then. Raises ApiError.
        """
        if self.is_fixed:
            yield
            return
        place = self._places[service]
        await self._enter(place, gone)
        if keep_alive_s is not None:
            place.keep_alive_s = keep_alive_s
        try:
            yield
        finally:
            self._leave(place)

    async def _enter(self, place: Place, gone: Callable[[], Awaitable[None]]) -> None:
        if place.may_go and not place.is_leaving:
            self._hold(place)
            return
        self._check_waiting(place)
        turn = asyncio.get_running_loop().create_future()
        place.waiting.append(turn)
        self._load(place)
        watcher = asyncio.ensure_future(gone())
        try:
            await asyncio.wait(
                {turn, watcher}, timeout=self._settings.load_timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        except BaseException:
            self._give_up(place, turn)
            raise
        finally:
            watcher.cancel()
        if turn.done():
            turn.result()
            return
        self._give_up(place, turn)
        if watcher.done() and not watcher.cancelled():
            raise ApiError(499, "the client has gone", code="client_closed_request")
        raise ApiError.unavailable(
            f"the model {place.name!r} could not be loaded within {self._settings.load_timeout_s:g} s: others use the "
            "memory, or it loads slowly; try again"
        )

    def _check_waiting(self, place: Place) -> None:
        """Raises ApiError 507 where waiting is in vain, 429 where too many do."""
        memory, least = self._settings.memory, place.service.model.least_share
        if memory is not None and least is not None and least > memory:
            raise ApiError(
                507, f"the model {place.name!r} needs {format_bytes(least)}, and this server's models may "
                f"take {format_bytes(memory)}; see --memory", "server_error", code="insufficient_memory", param="model",
            )  # fmt: skip
        if len(place.waiting) >= max(self._settings.max_queued, 1):
            place.service.admission.num_refused += 1
            raise ApiError(
                429, f"{len(place.waiting)} requests wait for {place.name!r} to be loaded already; try again",
                "rate_limit_error", code="queue_full", headers={"retry-after": "5"},
            )  # fmt: skip

    def _give_up(self, place: Place, turn: asyncio.Future[None]) -> None:
        """Of a request that waits no longer; perhaps its turn came at the same moment."""
        if not turn.done():
            place.waiting.remove(turn)
            turn.cancel()
        elif not turn.cancelled() and turn.exception() is None:
            self._leave(place)
        self._changed.set()

    def _hold(self, place: Place) -> None:
        place.num_users += 1
        if place.expiry is not None:
            place.expiry.cancel()
            place.expiry = None

    def _leave(self, place: Place) -> None:
        place.num_users -= 1
        self._rest(place)

    def _rest(self, place: Place) -> None:
        """If nobody uses the model now: it may be let go, by and by or at once."""
        if place.is_used or not place.may_go or self.is_fixed:
            return
        place.last_used_s = time.monotonic()
        if place.expiry is not None:
            place.expiry.cancel()
        if place.keep_alive_s < FOREVER:
            place.expiry = asyncio.get_running_loop().call_later(place.keep_alive_s, self._expire, place)
        self._changed.set()

    def _expire(self, place: Place) -> None:
        place.expiry = None
        if place.may_go and not place.is_used:
            self._let_go(place)

    def _load(self, place: Place) -> None:
        """Begins to, unless it is under way; a model that is being let go comes back afterwards."""
        if place.state == "unloaded" and place.loading is None:
            place.loading = asyncio.get_running_loop().create_task(self._load_in_turn(place))

    async def _load_in_turn(self, place: Place) -> None:
        try:
            async with self._turn:
                if not await self._make_room(place):
                    return
                place.state, place.num_bytes = "loading", self._share(place)
            await self._start(place)
        except StartError as error:  # those who wait were told
            logger.error("%s", error)
        finally:
            place.loading = None

    async def _make_room(self, place: Place) -> bool:
        """Waits until the memory is free, having others let go; False when nobody waits for the model any more."""
        try:
            while place.waiting and (missing := (place.service.model.least_share or 0) - self._free) > 0:
                self._changed.clear()
                self._ask_to_leave(missing)
                await self._changed.wait()
            return bool(place.waiting)
        finally:
            for other in self._places.values():
                self._let_stay(other)

    async def _start(self, place: Place) -> None:
        """Raises StartError."""
        try:
            await place.service.start(place.num_bytes or None)
        except Exception as error:
            reason = str(error) or type(error).__name__
            await self._end(place)
            self._refuse(place)
            raise StartError(
                reason if self.is_fixed else f"the model {place.name} can't be loaded: {reason}"
            ) from None  # fmt: skip
        else:
            place.state, place.keep_alive_s = "loaded", self._keep_alive_s
            place.num_loads += 1
            self._admit(place)
        finally:
            self._changed.set()

    @property
    def _free(self) -> int:
        """Bytes that no model holds."""
        return (self._settings.memory or 0) - sum(place.num_bytes for place in self._places.values())

    def _share(self, place: Place) -> int:
        """Of these, what the model takes."""
        return min(place.service.model.share or 0, self._free)

    def _ask_to_leave(self, missing: int) -> None:
        """Lets models go that are not used, and has others take no new requests, as many as will be enough: the least
        recently used ones first."""
        missing -= sum(place.num_bytes for place in self._places.values() if place.is_stopping)
        by_use = sorted((p for p in self._places.values() if p.may_go), key=lambda p: (p.is_used, p.last_used_s))
        for place in by_use:
            if missing <= 0:
                self._let_stay(place)
                continue
            missing -= place.num_bytes
            place.is_leaving = True
            if not place.is_used:
                self._let_go(place)

    def _let_stay(self, place: Place) -> None:
        if place.is_leaving and not place.is_stopping:
            place.is_leaving = False
            self._admit(place)

    def _let_go(self, place: Place) -> None:
        place.is_stopping = True
        if place.expiry is not None:
            place.expiry.cancel()
            place.expiry = None
        task = asyncio.get_running_loop().create_task(self._stop(place))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def _stop(self, place: Place) -> None:
        await self._end(place)
        if place.waiting:
            self._load(place)

    async def _end(self, place: Place) -> None:
        await place.service.stop()
        place.state, place.num_bytes, place.is_leaving, place.is_stopping = "unloaded", 0, False, False
        self._changed.set()

    def _admit(self, place: Place) -> None:
        """Hands the model, which is loaded, to all that wait for it."""
        waiting, place.waiting = place.waiting, []
        for turn in waiting:
            self._hold(place)
            turn.set_result(None)
        self._rest(place)

    def _refuse(self, place: Place) -> None:
        waiting, place.waiting = place.waiting, []
        for turn in waiting:
            turn.set_exception(
                ApiError(
                    503, f"the model {place.name!r} can't be loaded; the server's log says why", "server_error",
                    code="model_not_loaded", param="model",
                )
            )  # fmt: skip
