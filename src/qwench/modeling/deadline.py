"""The `timeout` of a call: how long the outermost call of this thread, `generate` or `forward`, has been running.

Knows nothing of models. `QwenchForCausalLM` begins calls; `steps.py` looks at the time after each step. The engine
bounds the requests that it answers itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from qwench.errors import DeadlineError


class Deadline(threading.local):
    """timeout_s: seconds from the beginning of the outermost call; None: no limit."""

    def __init__(self, timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        self._ends_s: float | None = None

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call; within another one it changes nothing."""
        outer = self._ends_s
        if outer is None and self.timeout_s is not None:
            self._ends_s = time.monotonic() + self.timeout_s
        try:
            yield
        finally:
            self._ends_s = outer

    def check(self) -> None:
        """Raises DeadlineError once the call has run too long."""
        if self._ends_s is not None and time.monotonic() > self._ends_s:
            raise DeadlineError(f"the call took longer than the timeout of {self.timeout_s} seconds; give it more")
