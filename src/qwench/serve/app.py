"""The app: the routes of each API (openai/, pooling/, anthropic/, ollama/), of the state (state.py) and of the page.

Called by served_app.py, which puts guard.py around it.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

import qwench
from qwench.errors import RequestError
from qwench.serve import failures
from qwench.serve.anthropic import routes as anthropic_routes
from qwench.serve.http.document import DocumentedApp
from qwench.serve.http.guard import OPEN_PATHS
from qwench.serve.http.json_body import route_class
from qwench.serve.http.page import page_file
from qwench.serve.metrics import ServerMetrics
from qwench.serve.models.models import Models
from qwench.serve.ollama import routes as ollama_routes
from qwench.serve.openai import routes as openai_routes
from qwench.serve.pooling import routes as pooling_routes
from qwench.serve.state import add_state


def make_app(models: Models, metrics: ServerMetrics) -> FastAPI:
    app = DocumentedApp(
        has_keys=models.settings.api_key_file is not None, open_paths=OPEN_PATHS, title="qwench",
        version=qwench.__version__, docs_url=None, redoc_url=None, redirect_slashes=False,
    )  # fmt: skip
    app.router.route_class = route_class(is_strict=models.settings.is_strict)
    app.add_exception_handler(HTTPException, failures.answer_http_exception)
    app.add_exception_handler(RequestValidationError, failures.answer_invalid_body)
    app.add_exception_handler(RequestError, failures.answer_user_error)
    app.add_exception_handler(Exception, failures.answer_fault)
    add_state(app, models, metrics)
    openai_routes.add_routes(app, models)
    pooling_routes.add_routes(app, models)
    anthropic_routes.add_routes(app, models)
    ollama_routes.add_routes(app, models)
    _add_page(app)
    return app


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    @app.get("/ui/{name:path}", include_in_schema=False)
    async def page(request: Request) -> Response:
        return page_file(request.url.path, request.headers)
