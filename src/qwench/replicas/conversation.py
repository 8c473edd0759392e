"""Which requests belong together: those that begin with the same text, as the turns of one conversation do.

Looks at bodies as clients write them, of any API, and knows no route. Called by ingress.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

BEGINNING = 256  # characters of a bare prompt, or tokens: as it grows, they stay


def conversation_of(body: bytes) -> str | None:
    """What stays the same in all requests of a conversation; None for a body that has no prompt of one.

    The client's own `prompt_cache_key`, else its first message, without the system's before it: that may have the date
    in it, and it is the same for everybody, so that all would go to one replica. Else the beginning of the prompt.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return None  # the replica says what is wrong with it
    if not isinstance(request, dict):
        return None
    key = request.get("prompt_cache_key")
    if isinstance(key, str) and key:
        return key
    for field in ("messages", "input", "prompt"):
        if (beginning := _beginning(request.get(field))) is not None:
            return json.dumps(beginning)
    return None


def _beginning(prompt: Any) -> Any:
    if isinstance(prompt, str):
        return prompt[:BEGINNING] or None
    if not isinstance(prompt, list) or not prompt:
        return None
    if isinstance(prompt[0], int):
        return prompt[:BEGINNING]
    if not isinstance(prompt[0], dict):
        return None  # several prompts, or texts to embed
    return next((item.get("content") for item in prompt if _is_users(item)), None)


def _is_users(item: Any) -> bool:
    return isinstance(item, Mapping) and item.get("role") == "user"
