"""The app: the routes of each API (openai/), of the server's state and of the page.

Called by server.py, which puts guard.py around it.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException

import qwench
from qwench.errors import RequestError
from qwench.serve import failures
from qwench.serve.failures import ApiError
from qwench.serve.http.document import DocumentedApp, open_route, text_route
from qwench.serve.http.guard import OPEN_PATHS
from qwench.serve.http.json_body import StrictRoute
from qwench.serve.http.page import page_file
from qwench.serve.openai.routes import add_routes
from qwench.serve.protocol import replies
from qwench.serve.service import Service


def make_app(service: Service) -> FastAPI:
    app = DocumentedApp(
        has_keys=service.settings.api_key_file is not None, open_paths=OPEN_PATHS, title="qwench",
        version=qwench.__version__, docs_url=None, redoc_url=None, redirect_slashes=False,
    )  # fmt: skip
    app.router.route_class = StrictRoute
    app.add_exception_handler(HTTPException, failures.answer_http_exception)
    app.add_exception_handler(RequestValidationError, failures.answer_invalid_body)
    app.add_exception_handler(RequestError, failures.answer_user_error)
    app.add_exception_handler(Exception, failures.answer_fault)
    _add_state(app, service)
    add_routes(app, service)
    _add_page(app)
    return app


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health", responses=open_route(replies.Status))
    async def health() -> Response:
        """The server answers."""
        return JSONResponse({"status": "ok"})

    @app.get("/ready", responses=open_route(replies.Status, 503))
    async def ready() -> Response:
        """The model is loaded, so that a request would be served now."""
        if not service.is_ready:
            raise ApiError.unavailable("the model is being loaded; try again")
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", response_class=Response, responses=text_route())
    async def metrics() -> Response:
        """For Prometheus."""
        return PlainTextResponse(service.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    @app.get("/ui/{name:path}", include_in_schema=False)
    async def page(request: Request) -> Response:
        return page_file(request.url.path, request.headers)
