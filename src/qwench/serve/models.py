"""The one place that finds what a request names as its model; routes of every API ask it. Made once by server.py.

Knows no API's JSON, and of a model only its Service.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence

from fastapi import Request

from qwench.serve.failures import ApiError
from qwench.serve.service import ServedModel, Service
from qwench.serve.settings import ServeSettings


class Models:
    """services: each served model's, the first one for requests that name none. created_s: when the server was started,
    in seconds since 1970."""

    def __init__(self, settings: ServeSettings, services: Sequence[Service]) -> None:
        self.settings, self.services = settings, services
        self.created_s = int(time.time())

    @property
    def served(self) -> tuple[ServedModel, ...]:
        """All that requests can name: each model by its names, and its adapters."""
        return tuple(model for service in self.services for model in service.models)

    @contextlib.asynccontextmanager
    async def use(self, name: str | None, request: Request) -> AsyncIterator[ServedModel]:
        """The model that a request names, kept while the request is answered. Raises ApiError as `find` does."""
        yield self.find(name)

    def find(self, name: str | None) -> ServedModel:
        """In answers by its first name: in any case, with a tag as Ollama has them, as "default" or not at all. Raises
        ApiError 404 for an unknown one."""
        served = self.served
        for model in served:
            if name == model.name:
                return model.as_answered()
        plain = plain_name(name or "default")
        if plain == "default":
            return served[0]
        for model in served:
            if plain == plain_name(model.name):
                return model.as_answered()
        names = " or ".join(repr(model.name) for model in served)
        raise ApiError(404, f"there is no model {name!r} here, only {names}", code="model_not_found", param="model")

    def check_room(self) -> None:
        """Raises ApiError 503 while there's no engine, 429 when not even one more answer may wait."""
        self.services[0].check_room()

    def max_body_bytes(self) -> int:
        """Of what the models take, the most."""
        return max(service.max_body_bytes() for service in self.services)


def plain_name(name: str) -> str:
    """A model's name without what clients change of it."""
    return name.strip().lower().removesuffix(":latest")
