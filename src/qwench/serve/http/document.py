"""The replies of the routes, for the OpenAPI document: each status that can come, with the schema of its body.

Request schemas are the classes in protocol/. Called by app.py and the routes of each API.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from qwench.serve.protocol.shared.reply import ErrorReply

Responses = dict[int | str, dict[str, Any]]

_RETRY_AFTER = {"Retry-After": {"description": "seconds to wait", "schema": {"type": "integer", "minimum": 1}}}
_ERRORS: dict[int, str] = {
    400: "something is wrong with the request",
    401: "the key is missing or wrong",
    403: "the server doesn't allow it",
    404: "there is no such model here",
    408: "the body didn't come in time",
    413: "the body is larger than a prompt that fills the context",
    415: "the body isn't application/json",
    421: "the server isn't meant for this Host",
    429: "the queue is full",
    500: "the server failed",
    503: "the model is being loaded, or can't be, or there are too many large requests",
    504: "the answer took longer than --timeout",
    507: "the model needs more memory than the server may give it",
}
_OF_ALL, _OF_CLOSED, _OF_BODIES, _OF_ANSWERS = (421, 500), (401,), (400, 404, 408, 413, 415, 429, 503, 507), (504,)


def open_route(reply: type[BaseModel], *errors: int) -> Responses:
    """Of a route that needs no key. errors: statuses that it has beside those of all routes."""
    return _responses({"application/json": {}}, (*_OF_ALL, *errors), reply)


def closed_route(reply: type[BaseModel], *errors: int, error: type[BaseModel] = ErrorReply) -> Responses:
    """Of a route behind the key. error: how its API shows errors, here and below."""
    return _responses(_content(None), (*_OF_ALL, *_OF_CLOSED, *errors), reply, error)


def text_route() -> Responses:
    """Of a route behind the key that answers with plain text; its response_class must have no media type."""
    return _responses({"text/plain": {"schema": {"type": "string"}}}, (*_OF_ALL, *_OF_CLOSED), None)


def text_body_route(*errors: int) -> Responses:
    """Of a route that reads a body and answers with plain text."""
    content = {"text/plain": {"schema": {"type": "string"}}}
    return _responses(content, (*_OF_ALL, *_OF_CLOSED, *_OF_BODIES, *errors), None)


def body_route(
    reply: type[BaseModel], *, stream: str | None = None, error: type[BaseModel] = ErrorReply
) -> Responses:  # fmt: skip
    """Of a route that reads a body. stream: the media type of streams, where it has some."""
    return _responses(_content(stream), (*_OF_ALL, *_OF_CLOSED, *_OF_BODIES), reply, error)


def answer_route(
    reply: type[BaseModel], *, stream: str | None = "text/event-stream", error: type[BaseModel] = ErrorReply
) -> Responses:
    """Of a route that makes answers, whole or as a stream of that media type."""
    return _responses(_content(stream), (*_OF_ALL, *_OF_CLOSED, *_OF_BODIES, *_OF_ANSWERS), reply, error)


def _content(stream: str | None) -> dict[str, Any]:
    return {"application/json": {}} | ({stream: {}} if stream else {})


def _responses(
    content: dict[str, Any], errors: tuple[int, ...], reply: type[BaseModel] | None,
    error: type[BaseModel] = ErrorReply,
) -> Responses:  # fmt: skip
    good: dict[str, Any] = {"description": "as asked for", "content": content}
    responses: Responses = {200: good if reply is None else good | {"model": reply}}
    for status in sorted(errors):
        responses[status] = {"description": _ERRORS[status], "model": error}
        if status in (429, 503):
            responses[status]["headers"] = _RETRY_AFTER
    return responses


class DocumentedApp(FastAPI):
    """FastAPI whose document has the API key, if there is one, and leaves out status 422, which never occurs."""

    def __init__(self, *, has_keys: bool, open_paths: frozenset[str], **options: Any) -> None:
        super().__init__(**options)
        self._has_keys, self._open_paths = has_keys, open_paths

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
                    if self._has_keys and path in self._open_paths:
                        operation["security"] = []
            schemas = document["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            if self._has_keys:
                document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                document["security"] = [{"key": []}]
        assert self.openapi_schema is not None
        return self.openapi_schema
