"""Answers as schemas: for the OpenAPI document, and for the tests, which hold answers against them.

Answers themselves are plain dicts, made in the file of each endpoint; no request goes through these classes.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Reply(BaseModel):
    """An object with these fields and no others. A field without a default is always there."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorDetail(Reply):
    """type: the kind of fault, param: the field that is wrong, code: OpenAI's word for it, which clients test."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Reply):
    """An answer other than 2xx."""

    error: ErrorDetail
