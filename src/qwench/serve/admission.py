"""How many answers may be open at once: those that run and a bounded number that wait. The rest is told to come later.

Counts samples, so that a request with n = 8 counts eight. Knows no HTTP beyond the status of its refusal. Called by
the endpoints before they tokenise, and by guard.py before a body is even read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from qwench.serve.failures import ApiError

MAX_RETRY_AFTER_S = 60


class Admission:
    """num_open: samples admitted and not yet over."""

    def __init__(self, max_queued: int) -> None:
        self.max_queued, self.max_running = max_queued, 0  # how many run is known once there's an engine
        self.num_open = self.num_refused = 0
        self.on_release: Callable[[], None] = lambda: None  # told when places become free
        self._sample_s = 0.5  # how long a place stays taken, a moving average

    @property
    def capacity(self) -> int:
        return self.max_running + self.max_queued

    @property
    def has_room(self) -> bool:
        return self.num_open < self.capacity

    def check_room(self, num_samples: int = 1) -> None:
        """Raises ApiError 429, with the seconds after which there should be room."""
        if self.num_open + num_samples <= self.capacity:
            return
        self.num_refused += 1
        waits_s = self._sample_s * (self.num_open - self.max_queued + num_samples) / max(self.max_running, 1)
        retry_after_s = min(max(math.ceil(waits_s), 1), MAX_RETRY_AFTER_S)
        raise ApiError(
            429, f"{self.num_open} answers are running or waiting, and no more than {self.capacity} may; try again in "
            f"{retry_after_s} s", "rate_limit_error", code="queue_full", headers={"retry-after": str(retry_after_s)},
        )  # fmt: skip

    def admit(self, num_samples: int) -> Callable[[], None]:
        """Takes the places; returns what gives them back, once however often it is called. Raises ApiError."""
        if num_samples > self.capacity:
            raise ApiError.bad_request(
                f"the request asks for {num_samples} answers, and no more than {self.capacity} can be open at once",
                param="n",
            )
        self.check_room(num_samples)
        self.num_open += num_samples
        since, is_held = time.monotonic(), True

        def release() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                self.num_open -= num_samples
                self._sample_s += 0.1 * (time.monotonic() - since - self._sample_s)
                self.on_release()

        return release
