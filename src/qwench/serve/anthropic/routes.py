"""Anthropic's routes on the app, each a line or two. Called by app.py."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from qwench.serve.anthropic.messages import answer_message, count_tokens
from qwench.serve.http.document import answer_route, body_route
from qwench.serve.models.models import Models
from qwench.serve.protocol.anthropic import replies
from qwench.serve.protocol.anthropic.messages import MessagesRequest

MESSAGES = "/v1/messages"
COUNT_TOKENS = f"{MESSAGES}/count_tokens"
ANSWER_PATHS = frozenset((MESSAGES,))
BODY_PATHS = ANSWER_PATHS | {COUNT_TOKENS}


def add_routes(app: FastAPI, models: Models) -> None:
    @app.post(MESSAGES, responses=answer_route(replies.Message, error=replies.MessageError))
    async def messages(body: MessagesRequest, request: Request) -> Response:
        async with models.use(body.model, request, body.keep_alive) as model:
            return await answer_message(model, body, request)

    @app.post(COUNT_TOKENS, responses=body_route(replies.TokenCount, error=replies.MessageError))
    async def tokens_of_messages(body: MessagesRequest, request: Request) -> Response:
        async with models.use(body.model, request, body.keep_alive) as model:
            return JSONResponse(await count_tokens(model.service, body))
