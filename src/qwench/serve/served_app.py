"""The server without its listener: all that an HTTP request passes, as one ASGI app, and the models' processes.

Knows nobody who listens: server.py does it with uvicorn, replicas/replica.py has Ray Serve do it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import FastAPI
from starlette.routing import Route
from starlette.types import ASGIApp

from qwench.serve.anthropic import routes as anthropic
from qwench.serve.anthropic.errors import AnthropicErrors
from qwench.serve.app import make_app
from qwench.serve.http.cors import Cors
from qwench.serve.http.error_forms import ErrorForms
from qwench.serve.http.guard import Guard
from qwench.serve.http.keys import ApiKeys
from qwench.serve.http.paths import RightPaths
from qwench.serve.metrics import ServerMetrics
from qwench.serve.models.models import Models
from qwench.serve.ollama import routes as ollama
from qwench.serve.ollama.errors import OllamaErrors
from qwench.serve.openai.routes import ANSWER_PATHS, BODY_PATHS
from qwench.serve.pooling.routes import ANSWER_PATHS as POOLING_PATHS
from qwench.serve.processes.children import Children
from qwench.serve.service import Service
from qwench.serve.settings import ServeSettings

# By what paths begin with; all others are OpenAI's.
ERROR_FORMS = {anthropic.MESSAGES: AnthropicErrors, ollama.START: OllamaErrors}


class ServedApp:
    """app: answers from the start, with status 503 what needs a model that isn't loaded yet."""

    def __init__(self, settings: ServeSettings, children: Sequence[Children]) -> None:
        """children: each model's, which end with `stop`. Raises ConfigError when the keys can't be read."""
        keys = None if settings.api_key_file is None else ApiKeys.from_file(settings.api_key_file)
        services = [Service.of(settings, model, own) for model, own in zip(settings.models, children, strict=True)]
        self._models = Models(settings, services)
        self.metrics = ServerMetrics(self._models)
        self.app = _guarded(make_app(self._models, self.metrics), self._models, keys)

    async def start(self) -> None:
        """Waits for the models that are to be there from the start. Raises StartError when one can't be loaded."""
        await self._models.loader.start()

    async def end(self) -> None:
        """Waits until a model is lost that can't be loaded again, which is for ever but on several hosts. Raises
        StartError."""
        await asyncio.gather(*(service.engine.end() for service in self._models.services if service.is_ready))

    async def stop(self) -> None:
        """Ends all processes."""
        await self._models.loader.stop()


def _guarded(routes: FastAPI, models: Models, keys: ApiKeys | None) -> ASGIApp:
    settings = models.settings
    app: ASGIApp = Guard(
        routes, keys=keys, hosts=settings.accepted_hosts,
        body_paths=BODY_PATHS | POOLING_PATHS | anthropic.BODY_PATHS | ollama.BODY_PATHS,
        answer_paths=ANSWER_PATHS | POOLING_PATHS | anthropic.ANSWER_PATHS | ollama.ANSWER_PATHS,
        loose_paths=ollama.BODY_PATHS, check_room=models.check_room, max_body_bytes=models.max_body_bytes,
    )  # fmt: skip
    app = ErrorForms(app, ERROR_FORMS)
    app = RightPaths(app, [route.path for route in routes.routes if isinstance(route, Route)])
    return Cors(app, settings.cors_origins) if settings.cors_origins else app
