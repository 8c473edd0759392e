"""A request on its way from the ingress to a replica, and what of it goes along. Passed between processes by Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

# Of an ASGI scope: what was received, without the objects that the ingress' own middleware left in it.
SCOPE_KEYS = (
    "type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers",
    "client", "server",
)  # fmt: skip


@dataclass(frozen=True)
class ForwardedRequest:
    """conversation: of conversation.py. tried: names of replicas that failed it, which get it again only if there are
    no others."""

    scope: Mapping[str, Any]
    body: bytes
    conversation: str | None
    tried: tuple[str, ...] = ()


def received(scope: Scope) -> dict[str, Any]:
    return {key: scope[key] for key in SCOPE_KEYS if key in scope}
