"""The one place that finds what a request names as its model; routes of every API ask it. Made once by served_app.py.

Knows no API's JSON. That the model is loaded is model_loader.py's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence

from fastapi import Request

from qwench.serve.failures import ApiError
from qwench.serve.models.model_loader import ModelLoader
from qwench.serve.models.model_settings import plain_name
from qwench.serve.service import ServedModel, Service
from qwench.serve.settings import ServeSettings


class Models:
    """services: each served model's, the first one for requests that name none. created_s: when the server was started,
    in seconds since 1970."""

    def __init__(self, settings: ServeSettings, services: Sequence[Service]) -> None:
        self.settings, self.services = settings, services
        self.loader = ModelLoader(settings, services)
        self.created_s = int(time.time())

    @property
    def served(self) -> tuple[ServedModel, ...]:
        """All that requests can name: each model by its names, and its adapters."""
        return tuple(model for service in self.services for model in service.models)

    @contextlib.asynccontextmanager
    async def use(
        self, name: str | None, request: Request, keep_alive_s: float | None = None
    ) -> AsyncIterator[ServedModel]:
        """The model that a request names, loaded first if need be, and kept while the request is answered.

        keep_alive_s: for how long afterwards, as the request says. Raises ApiError as `find` does, and when the model
        can't be loaded.
        """
        model = self.find(name)

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        async with self.loader.use(model.service, keep_alive_s, gone):
            yield model

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

    def let_go(self, name: str | None) -> ServedModel:
        """The model that a request names: from now on it is loaded no longer than somebody uses it. Raises ApiError as
        `find` does."""
        model = self.find(name)
        self.loader.let_go(model.service)
        return model

    def check_room(self) -> None:
        """Before it is known whose answer it is: raises ApiError 429 when no model lets even one more wait, and 503
        while the only one is being loaded."""
        first, *_ = self.services
        if self.loader.is_fixed or not any(
            self.loader.state(service) != "loaded" or service.has_room for service in self.services
        ):
            first.check_room()

    def max_body_bytes(self) -> int:
        """Of what the models take, the most."""
        return max(service.max_body_bytes() for service in self.services)
