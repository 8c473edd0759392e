"""Errors: raised everywhere in the HTTP process, made into responses by the handlers that app.py installs.

How they look is the API's matter: by default they are OpenAI's {"error": {"message", "type", "param", "code"}}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

from qwench.errors import QwenchError

FORM_KEY = "qwench.error_form"  # in a request's scope
_NO_FIELDS = frozenset(("body", "str", "constrained-str", "bool", "int", "float"))  # pydantic's names of alternatives


class ApiError(HTTPException):
    """An answer other than 2xx. code: OpenAI's word for it, which clients test. param: the field that is wrong."""

    def __init__(
        self, status: int, message: str, type: str = "invalid_request_error", *, code: str | None = None,
        param: str | None = None, headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(status, message, headers)
        self.message, self.type, self.code, self.param = message, type, code, param

    @classmethod
    def bad_request(cls, message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
        return cls(400, message, param=param, code=code)

    @classmethod
    def server_error(cls, message: str) -> ApiError:
        return cls(500, message, "server_error", code="server_error")

    @classmethod
    def unavailable(cls, message: str, *, retry_after_s: int = 1) -> ApiError:
        return cls(503, message, "server_error", code="unavailable", headers={"retry-after": str(retry_after_s)})

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI has it."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        return json.dumps(self.to_dict()).encode()

    def response(self, scope: Scope) -> JSONResponse:
        """In the form of the API whose request it is about."""
        return JSONResponse(form_of(scope).show(self), self.status_code, headers=self.headers)


class ErrorForm:
    """How one request is told of errors; OpenAI's way. headers: of whatever answers it."""

    headers: Mapping[str, str] = MappingProxyType({})

    def show(self, error: ApiError) -> dict[str, Any]:
        return error.to_dict()


def form_of(scope: Scope) -> ErrorForm:
    """http/error_forms.py puts it there."""
    form = scope.get(FORM_KEY)
    return form if isinstance(form, ErrorForm) else ErrorForm()


async def answer_user_error(request: Request, error: Exception) -> JSONResponse:
    """A QwenchError: the engine or the tokenizer refuses the request."""
    assert isinstance(error, QwenchError)
    return ApiError.bad_request(str(error)).response(request.scope)


async def answer_invalid_body(request: Request, error: Exception) -> JSONResponse:
    """The first error of the schema; of those of a union the one of the alternative that was meant."""
    assert isinstance(error, RequestValidationError)
    first = max(error.errors()[:50], key=_how_far_it_was_read)
    place = [str(part) for part in first["loc"] if part not in _NO_FIELDS and "[" not in str(part)]  # list[...]
    if first["type"] == "json_invalid":
        return ApiError.bad_request(f"the body isn't JSON: {first['ctx']['error']}").response(request.scope)
    where, param = ".".join(place) or "the body", place[0] if place else first.get("ctx", {}).get("name")
    return ApiError.bad_request(f"{where}: {first['msg']}", param=param).response(request.scope)


def _how_far_it_was_read(error: Mapping[str, Any]) -> tuple[bool, int, list[int]]:
    """An alternative of the right type, but too long or short, was meant rather than one of another type."""
    place = error["loc"]
    is_of_another_type = error["type"].endswith("_type") or error["type"] == "missing"
    return not is_of_another_type, len(place), [part for part in place if isinstance(part, int)]


async def answer_http_exception(request: Request, error: Exception) -> JSONResponse:
    """An ApiError, or what the router itself says: no such path, no such method, a body that can't be read."""
    if isinstance(error, ApiError):
        return error.response(request.scope)
    assert isinstance(error, HTTPException)
    messages = {404: f"there is no {request.url.path} here", 405: f"{request.method} isn't allowed here"}
    message = messages.get(error.status_code, str(error.detail))
    return ApiError(error.status_code, message, headers=dict(error.headers or {})).response(request.scope)


async def answer_fault(request: Request, error: Exception) -> JSONResponse:
    """An unexpected exception: guard.py logs it, the client gets a plain 500."""
    return ApiError.server_error("the server failed; its log says why").response(request.scope)
