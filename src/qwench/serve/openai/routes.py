"""OpenAI's routes on the app, each a line or two; what they do is in the file named after them. Called by app.py."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from qwench.serve.http.document import answer_route, body_route, closed_route
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


def add_routes(app: FastAPI, service: Service) -> None:
    _add_answers(app, service)
    _add_tokens(app, service)
    _add_models(app, service)


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


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", responses=closed_route(replies.ModelList))
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_model(service, name) for name in service.settings.names]})

    @app.get("/v1/models/{name:path}", responses=closed_route(replies.ModelEntry, 404))
    async def model(name: str) -> Response:
        service.check_model(name)
        return JSONResponse(_model(service, name))


def _model(service: Service, name: str) -> dict[str, Any]:
    entry = {"id": name, "object": "model", "created": service.created_s, "owned_by": "qwench"}
    info = service.engine.info
    return entry if info is None else entry | {"max_model_len": info.limits.max_seq_len}
