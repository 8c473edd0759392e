"""The body of /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from qwench.serve.protocol.openai.completions import Tokens
from qwench.serve.protocol.validation.body import LAX, NUMBER, Count, Flag, ModelBody
from qwench.serve.protocol.validation.other_forms import MAX_TOKENS

MAX_INPUTS = 2048  # OpenAI's
_SIDES = {"true": "right", "end": "right", "right": "right", "start": "left", "left": "left"}  # of "truncate"


class EmbeddingRequest(ModelBody):
    """Texts or tokens to embed. dimensions: the first ones alone. pooling: the last token's hidden state, the first's,
    or the mean of all; it and normalize: by default as the checkpoint says. prompt_name: which of its prompts goes
    before a text; "": none. truncate_prompt_tokens: how many of a longer input are read, -1: as many as the context
    holds; truncation_side: where the others are cut off, left by default, as vLLM has it."""

    places = ("request", "embeddings")
    input: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    )
    dimensions: Count | None = None
    encoding_format: Literal["float", "base64"] | None = None
    pooling: Literal["last", "mean", "first"] | None = None
    normalize: Flag | None = None
    prompt_name: Annotated[str, Field(max_length=256)] | None = None
    truncate_prompt_tokens: Annotated[int, LAX, Field(ge=-1, lt=MAX_TOKENS), NUMBER] | None = None
    truncation_side: Literal["left", "right"] | None = None
    cache_salt: Annotated[str, Field(max_length=256)] | None = None

    @classmethod
    def plain_form(cls, data: Any) -> Any:
        """`truncate` is Ollama's and others' word: true, or the end that is cut off."""
        if not isinstance(data, dict) or "truncate" not in data:
            return data
        rest = {name: value for name, value in data.items() if name != "truncate"}
        wish = data["truncate"]
        side = _SIDES.get(str(wish).lower()) if isinstance(wish, bool | str) else None
        return {"truncate_prompt_tokens": -1, "truncation_side": side, **rest} if side else rest
