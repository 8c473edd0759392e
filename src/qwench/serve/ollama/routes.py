"""Ollama's routes on the app, each a line or two. Called by app.py."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from qwench.serve.http.document import answer_route, body_route, closed_route
from qwench.serve.http.streaming import json_line
from qwench.serve.models.models import Models
from qwench.serve.ollama import chat, generate
from qwench.serve.ollama.embeddings import embed_all, embed_one
from qwench.serve.ollama.models import list_models, list_running, show_model
from qwench.serve.ollama.reply import MEDIA_TYPE, without_answer
from qwench.serve.protocol.ollama import replies
from qwench.serve.protocol.ollama.requests import (
    NamedModel,
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
)

START = "/api/"  # of all its paths
ANSWER_PATHS = frozenset(("/api/chat", "/api/generate", "/api/embed", "/api/embeddings"))
BODY_PATHS = ANSWER_PATHS | {"/api/show", "/api/pull"}
VERSION = "0.12.6"  # whose API this is; clients look at it for what they may ask

ERROR = replies.OllamaError


def add_routes(app: FastAPI, models: Models) -> None:
    _add_answers(app, models)
    _add_embeddings(app, models)
    _add_models(app, models)


def _add_answers(app: FastAPI, models: Models) -> None:
    @app.post("/api/chat", responses=answer_route(replies.OllamaChat, stream=MEDIA_TYPE, error=ERROR))
    async def chat_route(body: OllamaChatRequest, request: Request) -> Response:
        if body.lets_go:
            model = models.let_go(body.model)
            return without_answer(body.model or model.name, body, chat.NOTHING)
        async with models.use(body.model, request, body.keep_alive) as model:
            return await chat.answer_chat(model, body, request)

    @app.post("/api/generate", responses=answer_route(replies.OllamaText, stream=MEDIA_TYPE, error=ERROR))
    async def generate_route(body: OllamaGenerateRequest, request: Request) -> Response:
        if body.lets_go:
            model = models.let_go(body.model)
            return without_answer(body.model or model.name, body, generate.NOTHING)
        async with models.use(body.model, request, body.keep_alive) as model:
            return await generate.answer_generate(model, body, request)


def _add_embeddings(app: FastAPI, models: Models) -> None:
    @app.post("/api/embed", responses=answer_route(replies.OllamaEmbeddings, stream=None, error=ERROR))
    async def embed(body: OllamaEmbedRequest, request: Request) -> Response:
        async with models.use(body.model, request, body.keep_alive) as model:
            return JSONResponse(await embed_all(model, body, request))

    @app.post("/api/embeddings", responses=answer_route(replies.OllamaEmbedding, stream=None, error=ERROR))
    async def embeddings_of_one(body: OllamaEmbeddingsRequest, request: Request) -> Response:
        async with models.use(body.model, request, body.keep_alive) as model:
            return JSONResponse(await embed_one(model, body, request))


def _add_models(app: FastAPI, models: Models) -> None:
    @app.get("/api/tags", responses=closed_route(replies.Tags, error=ERROR))
    async def tags() -> Response:
        return JSONResponse(list_models(models))

    @app.get("/api/ps", responses=closed_route(replies.Running, error=ERROR))
    async def ps() -> Response:
        return JSONResponse(list_running(models))

    @app.get("/api/version", responses=closed_route(replies.OllamaVersion, error=ERROR))
    async def ollama_version() -> Response:
        return JSONResponse({"version": VERSION})

    @app.post("/api/show", responses=body_route(replies.ShownModel, error=ERROR))
    async def show(body: NamedModel) -> Response:
        return JSONResponse(show_model(models.find(body.model)))

    @app.post("/api/pull", responses=body_route(replies.PullStatus, stream=MEDIA_TYPE, error=ERROR))
    async def pull(body: NamedModel) -> Response:
        """Of a model that is there."""
        models.find(body.model)
        if body.stream is False:
            return JSONResponse({"status": "success"})
        return StreamingResponse(_pulled(), media_type=MEDIA_TYPE)


def _pulled() -> Iterator[bytes]:
    for status in ("pulling manifest", "success"):
        yield json_line({"status": status})
