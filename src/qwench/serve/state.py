"""Routes that tell of the server itself, as dashboards and health checks of this and of other servers ask for it.

Called by app.py.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

import qwench
from qwench.serve.failures import ApiError
from qwench.serve.http.document import closed_route, open_route, text_route
from qwench.serve.metrics import ServerMetrics
from qwench.serve.models.models import Models
from qwench.serve.protocol import state_replies
from qwench.serve.service import Service


def add_state(app: FastAPI, models: Models, metrics: ServerMetrics) -> None:
    _add_health(app, models, metrics)
    _add_descriptions(app, models)


def _add_health(app: FastAPI, models: Models, metrics: ServerMetrics) -> None:
    @app.get("/health", responses=open_route(state_replies.Status))
    async def health() -> Response:
        """The server answers."""
        return JSONResponse({"status": "ok"})

    @app.get("/ready", responses=open_route(state_replies.Status, 503))
    async def ready() -> Response:
        """A request would be served now: the model is loaded, or of several those that are to be from the start."""
        if not models.loader.is_ready:
            raise ApiError.unavailable("the model is being loaded; try again")
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", response_class=Response, responses=text_route())
    async def show_metrics() -> Response:
        """For Prometheus."""
        return PlainTextResponse(metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _add_descriptions(app: FastAPI, models: Models) -> None:
    @app.get("/version", responses=closed_route(state_replies.Version))
    async def version() -> Response:
        """As vLLM has it."""
        return JSONResponse({"version": qwench.__version__})

    @app.get("/v1", responses=closed_route(state_replies.Index))
    async def index() -> Response:
        """What is here."""
        shown = {route.path_format for route in app.routes if isinstance(route, APIRoute) and route.include_in_schema}
        paths = sorted(path for path in shown if path.startswith("/v1/"))  # the document has them, and takes long
        return JSONResponse({"object": "api", "version": qwench.__version__, "routes": paths})

    @app.get("/props", responses=closed_route(state_replies.Props, 400, 404, 503))
    async def props(model: str | None = None) -> Response:
        """As llama.cpp's server has it, what its clients read of it."""
        service = _loaded(models, model)
        info = service.engine_info()
        return JSONResponse({
            "default_generation_settings": {"n_ctx": info.limits.max_seq_len},
            "total_slots": info.max_num_seqs, "model_path": service.name, "model_alias": service.name,
            "build_info": f"qwench {qwench.__version__}", "modalities": {"vision": False, "audio": False},
        })  # fmt: skip

    @app.get("/slots", responses=closed_route(state_replies.Slots, 400, 404, 503))
    async def slots(model: str | None = None) -> Response:
        """As llama.cpp's server has it: a place for each answer that may run, the first ones taken."""
        service = _loaded(models, model)
        info, num_running = service.engine_info(), int(service.engine.metrics.get("num_running", 0))
        return JSONResponse([_slot(i, info.limits.max_seq_len, i < num_running) for i in range(info.max_num_seqs)])


def _loaded(models: Models, name: str | None) -> Service:
    """Of the model of that name, the first one without. Raises ApiError 404, and 503 for one that isn't loaded: to look
    loads none."""
    service = models.find(name).service
    if models.loader.state(service) == "unloaded":
        raise ApiError.unavailable(f"the model {service.name!r} isn't loaded; a request for an answer loads it")
    return service


def _slot(index: int, max_seq_len: int, is_taken: bool) -> dict[str, Any]:
    return {"id": index, "n_ctx": max_seq_len, "is_processing": is_taken}
