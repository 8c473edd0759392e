"""A conversation that is too long loses its oldest turns: `truncation: "auto"` of /v1/responses, and Ollama's chats.

Called by chats.py.
"""

from __future__ import annotations

from typing import Any

from qwench.serve.failures import ApiError
from qwench.serve.protocol.shared.conversation import TemplateMessage
from qwench.serve.service import Service


async def latest_turns(
    service: Service, messages: list[TemplateMessage], template: dict[str, Any], room: int
) -> list[int]:
    """The tokens of the system turns at the beginning and of as many of the latest ones as `room` tokens hold, but of
    the last one in any case. Raises ApiError."""
    num_system = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    system, turns = messages[:num_system], messages[num_system:]

    async def fitting(left_out: int) -> list[int] | None:
        try:
            tokens = await service.text.chat([*system, *turns[left_out:]], template, room)
        except ApiError as error:
            if error.code != "context_length_exceeded":
                raise
            return None
        return tokens if len(tokens) <= room else None

    low, high, found = 0, max(len(turns) - 1, 0), None
    middle = low  # mostly all of them fit
    while low < high:
        tokens = await fitting(middle)
        low, high, found = (middle + 1, high, found) if tokens is None else (low, middle, tokens)
        middle = (low + high) // 2
    if found is None:
        return await service.text.chat([*system, *turns[low:]], template, room)
    return found
