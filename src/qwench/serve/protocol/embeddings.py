"""The body of /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from qwench.serve.protocol.common import LAX, NUMBER, Body, Count, Flag
from qwench.serve.protocol.completions import Tokens
from qwench.serve.protocol.other_forms import MAX_TOKENS

MAX_INPUTS = 2048  # OpenAI's


class EmbeddingRequest(Body):
    """Texts or tokens to embed. pooling: the last token's hidden state, or the mean of all. dimensions: the first ones
    alone. truncate_prompt_tokens: the last ones of a longer input; -1: as many as the context holds."""

    places = ("request", "embeddings")
    input: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    )
    model: str | None = None
    dimensions: Count | None = None
    encoding_format: Literal["float", "base64"] | None = None
    pooling: Literal["last", "mean"] | None = None
    normalize: Flag | None = None
    truncate_prompt_tokens: Annotated[int, LAX, Field(ge=-1, lt=MAX_TOKENS), NUMBER] | None = None
    cache_salt: Annotated[str, Field(max_length=256)] | None = None
