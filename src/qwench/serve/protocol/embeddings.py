"""The body of /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from qwench.serve.protocol.common import Body
from qwench.serve.protocol.completions import Tokens

MAX_INPUTS = 2048  # OpenAI's


class EmbeddingRequest(Body):
    """Texts or tokens to embed. pooling: the last token's hidden state, or the mean of all."""

    input: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    )
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    pooling: Literal["last", "mean"] = "last"
    normalize: bool = True
    cache_salt: Annotated[str, Field(max_length=256)] | None = None
    user: str | None = None
