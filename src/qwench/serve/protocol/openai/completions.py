"""The body of /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from qwench.serve.protocol.shared.formats import ChatFormat, Format, without_texts
from qwench.serve.protocol.shared.sampling import SamplingFields
from qwench.serve.protocol.validation.body import (
    LAX,
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    NUMBER,
    Flag,
    StreamOptions,
    TokenId,
    TopLogprobs,
)
from qwench.serve.protocol.validation.other_forms import MAX_TOKENS, unless_empty, without_limit

MAX_PROMPTS = 128
DEFAULT_MAX_TOKENS = 16  # OpenAI's

Tokens = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


def _count_of_flag(value: Any) -> Any:
    """As chats have it: true shows the chosen token's alone, if top_logprobs doesn't say more."""
    if isinstance(value, bool):
        return 0 if value else None
    return value


class CompletionRequest(SamplingFields):
    """A text to go on with, or several. suffix: what comes after the answer, for models trained to fill in."""

    places = ("request", "answers", "completions")
    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    )
    best_of: Annotated[int, LAX, Field(ge=1, le=MAX_CHOICES), NUMBER] | None = None
    echo: Flag | None = None
    logprobs: Annotated[
        Annotated[int, LAX, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None, BeforeValidator(_count_of_flag)
    ] = None  # fmt: skip
    max_tokens: Annotated[int, LAX, Field(ge=0, lt=MAX_TOKENS), BeforeValidator(without_limit)] | None = (
        DEFAULT_MAX_TOKENS
    )
    prompt_logprobs: TopLogprobs | None = None
    response_format: ChatFormat | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    suffix: Annotated[str | None, BeforeValidator(unless_empty)] = None
    top_logprobs: TopLogprobs | None = None

    @classmethod
    def plain_form(cls, data: Any) -> Any:
        return without_texts(data)

    @property
    def num_logprobs(self) -> int | None:
        """Of the likeliest tokens at each place of the answer; None: none are shown."""
        return None if self.logprobs is None else max(self.logprobs, self.top_logprobs or 0)

    def formats(self) -> dict[str, Format | None]:
        return {**super().formats(), "response_format": self.response_format}
