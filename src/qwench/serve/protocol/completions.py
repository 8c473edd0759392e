"""The body of /v1/completions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from qwench.serve.protocol.common import (
    MAX_CHOICES,
    MAX_TOKENS,
    MAX_TOP_LOGPROBS,
    StreamOptions,
    TokenId,
)
from qwench.serve.protocol.sampling import SamplingFields

MAX_PROMPTS = 128
DEFAULT_MAX_TOKENS = 16  # OpenAI's

Tokens = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


class CompletionRequest(SamplingFields):
    """A text to go on with, or several. suffix: what comes after the answer, for models trained to fill in."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    )
    model: str | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=MAX_TOKENS)] | None = DEFAULT_MAX_TOKENS
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    suffix: Annotated[str, Field(min_length=1)] | None = None
