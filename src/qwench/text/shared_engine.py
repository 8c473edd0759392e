"""SharedTextEngine: one TextEngine for many threads. Whoever waits for an answer steps for all who do.

Knows nothing of prompts. Called by `LLM`, whose threads iterate, and by `AsyncLLM`, which has a thread that steps.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from qwench.errors import RequestError
from qwench.text.generation import Delta, TextEngine


class Inbox(Protocol):
    """Where the deltas of a caller's requests go."""

    def append(self, delta: Delta, /) -> object: ...


class SharedTextEngine:
    """The engine is one thread's at a time: for a step, or for a `turn` in which requests come and go."""

    def __init__(self, engine: TextEngine) -> None:
        self._engine = engine
        self._condition = threading.Condition()
        self._is_taken = False
        self._num_turns_wanted = 0  # which go before the next step, so that adding never waits for more than one
        self._inboxes: dict[str, Inbox] = {}
        self._is_closed = False
        self._process = os.getpid()

    @contextmanager
    def turn(self) -> Iterator[TextEngine]:
        """The engine while nobody steps. Raises RequestError after `close` and in a forked process."""
        with self._condition:
            self._check()
            self._num_turns_wanted += 1
            while self._is_taken:
                self._condition.wait()
            self._num_turns_wanted -= 1
            self._is_taken = True
        try:
            self._check()
            yield self._engine
        finally:
            self._release()

    def open(self, add: Callable[[TextEngine], list[str]], inbox: Inbox) -> list[str]:
        """Adds requests, whose ids `add` returns, and has their deltas go to `inbox` until `forget`."""
        with self.turn() as engine:
            names = add(engine)
            self._inboxes |= dict.fromkeys(names, inbox)
        return names

    def forget(self, names: list[str]) -> None:
        """Ends requests that aren't over. Does nothing once the engine is closed."""
        try:
            with self.turn() as engine:
                for name in names:
                    self._inboxes.pop(name, None)
                    engine.abort(name)
        except RequestError:
            pass  # closing has ended them

    def follow(self, add: Callable[[TextEngine], list[str]]) -> Iterator[Delta]:
        """The deltas of requests until all of them are over; aborts them if the generator is closed before. Other
        threads' requests are worked on meanwhile, in the same steps."""
        inbox: deque[Delta] = deque()
        names = self.open(add, inbox)
        unfinished = set(names)
        try:
            while unfinished:
                self._step_unless(inbox)
                while inbox:
                    delta = inbox.popleft()
                    if delta.is_whole:
                        unfinished.discard(delta.request_id)
                    yield delta
        finally:
            self.forget(names)

    def step_for_ever(self) -> None:
        """Steps whenever there is something to do, until `close`. Run by a thread of its own."""
        while True:
            with self._condition:
                while not self._is_closed and (
                    self._is_taken or self._num_turns_wanted or not self._engine.has_unfinished()
                ):
                    self._condition.wait()
                if self._is_closed:
                    return
                self._is_taken = True
            self._step()

    def close(self) -> None:
        """Ends all requests, whose callers get a RequestError, and closes the engine. Idempotent."""
        if self._is_closed or os.getpid() != self._process:
            return
        with self.turn() as engine:
            self._is_closed = True
            engine.engine.close()

    def _step_unless(self, inbox: deque[Delta]) -> None:
        """Returns when there is something in `inbox`, or after a step."""
        with self._condition:
            while not inbox and (self._is_taken or self._num_turns_wanted):
                self._check()
                self._condition.wait()
            if inbox:
                return
            self._check()
            self._is_taken = True
        self._step()

    def _step(self) -> None:
        """Of the thread that has taken the engine."""
        try:
            for delta in self._engine.step():
                inbox = self._inboxes.get(delta.request_id)
                if inbox is not None:
                    inbox.append(delta)
        finally:
            self._release()

    def _release(self) -> None:
        with self._condition:
            self._is_taken = False
            self._condition.notify_all()

    def _check(self) -> None:
        if self._is_closed:
            raise RequestError("this model was closed; load it again")
        if os.getpid() != self._process:
            raise RequestError("this model was loaded before a fork; load it in the child")
