"""OpenAI's routes on the app, each a line or two; what they do is in the file named after them. Called by app.py."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from qwench.serve.http.document import answer_route, body_route, closed_route, text_body_route
from qwench.serve.models.models import Models
from qwench.serve.openai import tokens
from qwench.serve.openai.adapters import load_adapter, unload_adapter
from qwench.serve.openai.chat import answer_chat
from qwench.serve.openai.completions import answer_completion
from qwench.serve.openai.embeddings import answer_embeddings
from qwench.serve.openai.responses import answer_response
from qwench.serve.protocol.openai import replies
from qwench.serve.protocol.openai.adapters import LoadAdapterRequest, UnloadAdapterRequest
from qwench.serve.protocol.openai.chat import ChatRequest
from qwench.serve.protocol.openai.completions import CompletionRequest
from qwench.serve.protocol.openai.embeddings import EmbeddingRequest
from qwench.serve.protocol.openai.responses import ResponsesRequest
from qwench.serve.protocol.openai.tokens import DetokenizeRequest, TokenizeRequest
from qwench.serve.service import ServedModel

ANSWER_PATHS = frozenset(
    ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
)  # they need places in the queue
BODY_PATHS = ANSWER_PATHS | {"/tokenize", "/detokenize", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"}


def add_routes(app: FastAPI, models: Models) -> None:
    _add_answers(app, models)
    _add_tokens(app, models)
    _add_models(app, models)
    _add_adapters(app, models)


def _add_answers(app: FastAPI, models: Models) -> None:
    @app.post("/v1/chat/completions", responses=answer_route(replies.ChatCompletion))
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        async with models.use(body.model, request, body.keep_alive) as model:
            return await answer_chat(model, body, request)

    @app.post("/v1/completions", responses=answer_route(replies.Completion))
    async def completions(body: CompletionRequest, request: Request) -> Response:
        async with models.use(body.model, request, body.keep_alive) as model:
            return await answer_completion(model, body, request)

    @app.post("/v1/responses", responses=answer_route(replies.ResponseObject))
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        async with models.use(body.model, request, body.keep_alive) as model:
            return await answer_response(model, body, request)

    @app.post("/v1/embeddings", responses=answer_route(replies.EmbeddingList, stream=None))
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        async with models.use(body.model, request, body.keep_alive) as model:
            return JSONResponse(await answer_embeddings(model, body, request))


def _add_tokens(app: FastAPI, models: Models) -> None:
    @app.post("/tokenize", responses=body_route(replies.Tokens))
    async def tokenize(body: TokenizeRequest, request: Request) -> Response:
        async with models.use(body.model, request, body.keep_alive) as model:
            return JSONResponse(await tokens.tokenize(model, body))

    @app.post("/detokenize", responses=body_route(replies.Text))
    async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
        async with models.use(body.model, request, body.keep_alive) as model:
            return JSONResponse(await tokens.detokenize(model, body))


def _add_models(app: FastAPI, models: Models) -> None:
    @app.get("/v1/models", responses=closed_route(replies.ModelList))
    async def list_models() -> Response:
        """As OpenAI has it, and beside it as Anthropic does, at the same path."""
        entries = [_entry(models, model) for model in models.served]
        ends = {"has_more": False, "first_id": entries[0]["id"], "last_id": entries[-1]["id"]}
        return JSONResponse({"object": "list", "data": entries, **ends})

    @app.get("/v1/models/{name:path}", responses=closed_route(replies.ModelEntry, 404))
    async def model(name: str) -> Response:
        return JSONResponse(_entry(models, models.find(name)._replace(name=name)))


def _add_adapters(app: FastAPI, models: Models) -> None:
    @app.post("/v1/load_lora_adapter", response_class=Response, responses=text_body_route(403))
    async def load_lora_adapter(body: LoadAdapterRequest, request: Request) -> Response:
        return PlainTextResponse(await load_adapter(models, body, request))

    @app.post("/v1/unload_lora_adapter", response_class=Response, responses=text_body_route(403))
    async def unload_lora_adapter(body: UnloadAdapterRequest, request: Request) -> Response:
        return PlainTextResponse(await unload_adapter(models, body, request))


def _entry(models: Models, model: ServedModel) -> dict[str, Any]:
    created = datetime.fromtimestamp(models.created_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    entry = {"id": model.name, "object": "model", "created": models.created_s, "owned_by": "qwench"}
    entry |= {"type": "model", "display_name": model.name, "created_at": created}
    entry["state"] = models.loader.state(model.service)
    if model.lora is not None:
        entry["parent"] = model.service.name
    length = model.service.max_seq_len
    return entry if length is None else entry | {"max_model_len": length}
