"""The routes, each a line or two; what they do is in the file named after them.

Called by server.py, which puts guard.py around it.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException

import qwench
from qwench.errors import RequestError
from qwench.serve import failures
from qwench.serve.failures import ApiError
from qwench.serve.http.document import DocumentedApp, answer_route, body_route, closed_route, open_route, text_route
from qwench.serve.http.guard import OPEN_PATHS
from qwench.serve.http.json_body import StrictRoute
from qwench.serve.http.page import page_file
from qwench.serve.openai import tokens
from qwench.serve.openai.chat import answer_chat
from qwench.serve.openai.completions import answer_completion
from qwench.serve.openai.embeddings import embed
from qwench.serve.openai.responses import answer_response
from qwench.serve.protocol import replies
from qwench.serve.protocol.chat import ChatRequest
from qwench.serve.protocol.completions import CompletionRequest
from qwench.serve.protocol.embeddings import EmbeddingRequest
from qwench.serve.protocol.responses import ResponsesRequest
from qwench.serve.protocol.tokens import DetokenizeRequest, TokenizeRequest
from qwench.serve.service import Service

ANSWER_PATHS = frozenset(
    ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
)  # they need places in the queue
BODY_PATHS = ANSWER_PATHS | {"/tokenize", "/detokenize"}


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
    _add_answers(app, service)
    _add_tokens(app, service)
    _add_state(app, service)
    _add_page(app)
    return app


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", responses=answer_route(replies.ChatCompletion))
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        return await answer_chat(service, body, request)

    @app.post("/v1/completions", responses=answer_route(replies.Completion))
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await answer_completion(service, body, request)

    @app.post("/v1/responses", responses=answer_route(replies.ResponseObject))
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        return await answer_response(service, body, request)

    @app.post("/v1/embeddings", responses=answer_route(replies.EmbeddingList, streams=False))
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        return JSONResponse(await embed(service, body, request))


def _add_tokens(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize", responses=body_route(replies.Tokens))
    async def tokenize(body: TokenizeRequest) -> Response:
        return JSONResponse(await tokens.tokenize(service, body))

    @app.post("/detokenize", responses=body_route(replies.Text))
    async def detokenize(body: DetokenizeRequest) -> Response:
        return JSONResponse(await tokens.detokenize(service, body))


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

    @app.get("/v1/models", responses=closed_route(replies.ModelList))
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_model(service, name) for name in service.settings.names]})

    @app.get("/v1/models/{name:path}", responses=closed_route(replies.ModelEntry, 404))
    async def model(name: str) -> Response:
        service.check_model(name)
        return JSONResponse(_model(service, name))


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    @app.get("/ui/{name}", include_in_schema=False)
    async def page(request: Request) -> Response:
        return page_file(request.url.path)


def _model(service: Service, name: str) -> dict[str, Any]:
    entry = {"id": name, "object": "model", "created": service.created_s, "owned_by": "qwench"}
    info = service.engine.info
    return entry if info is None else entry | {"max_model_len": info.limits.max_seq_len}
