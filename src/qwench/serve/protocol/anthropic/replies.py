"""What /v1/messages answers, as schemas; see shared/reply.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from qwench.serve.protocol.shared.reply import Reply


class MessageErrorDetail(Reply):
    type: str
    message: str


class MessageError(Reply):
    """An answer other than 2xx. request_id: as in the head `request-id`."""

    type: Literal["error"]
    error: MessageErrorDetail
    request_id: str


class TextContent(Reply):
    type: Literal["text"]
    text: str


class ThinkingContent(Reply):
    """signature: to be given back with the thought; nobody checks it."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseContent(Reply):
    """A call that the model asks for."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class OutputTokensDetails(Reply):
    """thinking_tokens: of thoughts and their tags."""

    thinking_tokens: int


class MessageUsage(Reply):
    """input_tokens: of the prompt, without cache_read_input_tokens, which were in the KV cache of earlier requests."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputTokensDetails


class Message(Reply):
    """stop_sequence: the one that ended it."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Annotated[TextContent | ThinkingContent | ToolUseContent, Field(discriminator="type")]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"] | None
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(Reply):
    input_tokens: int
