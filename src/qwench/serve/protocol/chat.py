"""The body of /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from qwench.serve.protocol.common import (
    MAX_TOP_LOGPROBS,
    Body,
    Count,
    SamplingFields,
    StreamOptions,
    few_entries,
)


class TextPart(Body):
    """A part of a message's content. Qwen2 reads text and nothing else."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One turn. `developer` is what OpenAI calls `system` now."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=1024, fail_fast=True)]
    name: str | None = None

    def to_template(self) -> dict[str, Any]:
        """As chat templates expect it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        message = {"role": "system" if self.role == "developer" else self.role, "content": text}
        return message if self.name is None else message | {"name": self.name}


class TextFormat(Body):
    """response_format: plain text."""

    type: Literal["text"]


class ChatRequest(SamplingFields):
    """A conversation to go on with."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=8192, fail_fast=True)]
    model: str | None = None
    logprobs: bool | None = None
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = None
    modalities: list[Literal["text"]] | None = None
    response_format: TextFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    chat_template_kwargs: Annotated[dict[str, bool | int | float | str], BeforeValidator(few_entries)] | None = None
