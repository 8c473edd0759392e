"""OpenAI's routes on the app, each a line or two; what they do is in the file named after them. Called by app.py."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from qwench.serve.http.document import answer_route, body_route, closed_route, text_body_route
from qwench.serve.openai import tokens
from qwench.serve.openai.adapters import load_adapter, unload_adapter
from qwench.serve.openai.chat import answer_chat
from qwench.serve.openai.completions import answer_completion
from qwench.serve.openai.embeddings import answer_embeddings
from qwench.serve.openai.responses import answer_response
from qwench.serve.protocol import replies
from qwench.serve.protocol.adapters import LoadAdapterRequest, UnloadAdapterRequest
from qwench.serve.protocol.chat import ChatRequest
from qwench.serve.protocol.completions import CompletionRequest
from qwench.serve.protocol.embeddings import EmbeddingRequest
from qwench.serve.protocol.responses import ResponsesRequest
from qwench.serve.protocol.tokens import DetokenizeRequest, TokenizeRequest
from qwench.serve.service import ServedModel, Service

ANSWER_PATHS = frozenset(
    ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
)  # they need places in the queue
BODY_PATHS = ANSWER_PATHS | {"/tokenize", "/detokenize", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"}


def add_routes(app: FastAPI, service: Service) -> None:
    _add_answers(app, service)
    _add_tokens(app, service)
    _add_models(app, service)
    _add_adapters(app, service)


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

    @app.post("/v1/embeddings", responses=answer_route(replies.EmbeddingList, stream=None))
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        return JSONResponse(await answer_embeddings(service, body, request))


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
        """As OpenAI has it, and beside it as Anthropic does, at the same path."""
        entries = [_model(service, model) for model in service.models]
        ends = {"has_more": False, "first_id": entries[0]["id"], "last_id": entries[-1]["id"]}
        return JSONResponse({"object": "list", "data": entries, **ends})

    @app.get("/v1/models/{name:path}", responses=closed_route(replies.ModelEntry, 404))
    async def model(name: str) -> Response:
        model = service.check_model(name)
        return JSONResponse(_model(service, ServedModel(name, model.lora)))


def _add_adapters(app: FastAPI, service: Service) -> None:
    @app.post("/v1/load_lora_adapter", response_class=Response, responses=text_body_route(403))
    async def load_lora_adapter(body: LoadAdapterRequest) -> Response:
        return PlainTextResponse(await load_adapter(service, body))

    @app.post("/v1/unload_lora_adapter", response_class=Response, responses=text_body_route(403))
    async def unload_lora_adapter(body: UnloadAdapterRequest) -> Response:
        return PlainTextResponse(await unload_adapter(service, body))


def _model(service: Service, model: ServedModel) -> dict[str, Any]:
    created = datetime.fromtimestamp(service.created_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    entry = {"id": model.name, "object": "model", "created": service.created_s, "owned_by": "qwench"}
    entry |= {"type": "model", "display_name": model.name, "created_at": created}
    if model.lora is not None:
        entry["parent"] = service.name
    info = service.engine.info
    return entry if info is None else entry | {"max_model_len": info.limits.max_seq_len}
