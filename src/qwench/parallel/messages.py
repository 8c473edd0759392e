"""What rank 0 tells the other ranks: calls of their executors, written into the team's mailbox. Steps of the cpu
target go there by themselves, in native code.

Pickled, since they come from the process that started the ranks, and hold arrays. Used on both sides. What a call gives
back has a place of its own in `team_memory.py`.
"""

from __future__ import annotations

import pickle
from typing import Any

from qwench.errors import CapacityError
from qwench.targets.target import Bytes

STEP, CALL, CLOSE = 1, 2, 3  # kinds of messages
_HEAD_BYTES = 8


def write(mail: Bytes, method: str, arguments: tuple[Any, ...]) -> int:
    """Returns the number of bytes. Raises CapacityError for arguments that are too large."""
    data = pickle.dumps((method, arguments), protocol=5)
    num_bytes = _HEAD_BYTES + len(data)
    if num_bytes > len(mail):
        raise CapacityError(f"{method} needs {num_bytes} bytes; ranks can be told {len(mail)} at once")
    mail[:num_bytes] = memoryview(len(data).to_bytes(_HEAD_BYTES, "little") + data)
    return num_bytes


def read(mail: Bytes) -> tuple[str, tuple[Any, ...]]:
    size = int.from_bytes(mail[:_HEAD_BYTES].tobytes(), "little")
    method, arguments = pickle.loads(mail[_HEAD_BYTES : _HEAD_BYTES + size].tobytes())
    return method, arguments
