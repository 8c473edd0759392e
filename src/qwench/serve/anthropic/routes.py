"""Anthropic's routes on the app, each a line or two. Called by app.py."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from qwench.serve.anthropic.messages import answer_message, count_tokens
from qwench.serve.http.document import answer_route, body_route
from qwench.serve.protocol import messages_replies as replies
from qwench.serve.protocol.messages import MessagesRequest
from qwench.serve.service import Service

MESSAGES = "/v1/messages"
COUNT_TOKENS = f"{MESSAGES}/count_tokens"
ANSWER_PATHS = frozenset((MESSAGES,))
BODY_PATHS = ANSWER_PATHS | {COUNT_TOKENS}


def add_routes(app: FastAPI, service: Service) -> None:
    @app.post(MESSAGES, responses=answer_route(replies.Message, error=replies.MessageError))
    async def messages(body: MessagesRequest, request: Request) -> Response:
        return await answer_message(service, body, request)

    @app.post(COUNT_TOKENS, responses=body_route(replies.TokenCount, error=replies.MessageError))
    async def tokens_of_messages(body: MessagesRequest) -> Response:
        return JSONResponse(await count_tokens(service, body))
