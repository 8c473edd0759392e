"""The body of /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from qwench.serve.protocol.common import (
    MAX_TOP_LOGPROBS,
    Body,
    Count,
    StreamOptions,
    few_entries,
)
from qwench.serve.protocol.conversation import TemplateMessage, called, in_order_of_calls, text_of
from qwench.serve.protocol.formats import ChatFormat, Format
from qwench.serve.protocol.sampling import SamplingFields
from qwench.serve.protocol.tools import MAX_CALLS, CallId, ChatToolChoice, ChatTools


class TextPart(Body):
    """A part of a message's content. Qwen2 reads text and nothing else."""

    type: Literal["text"]
    text: str


class CalledFunction(Body):
    """arguments: JSON, as the model wrote it."""

    name: str
    arguments: str


class MessageToolCall(Body):
    """A call of a former answer; index where it comes from a stream."""

    function: CalledFunction
    id: CallId | None = None
    type: Literal["function"] = "function"
    index: int | None = None


class ChatMessage(Body):
    """One turn. `developer` is what OpenAI calls `system` now; `tool` has the result of a call.

    What former answers have beside their text and their calls comes back with them, empty.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(max_length=1024, fail_fast=True)] | None = None
    name: str | None = None
    tool_call_id: CallId | None = None
    tool_calls: Annotated[list[MessageToolCall], Field(max_length=MAX_CALLS, fail_fast=True)] | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _has_what_its_role_needs(self) -> ChatMessage:
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("missing", "content is missing; only a message with tool_calls goes without")
        if self.tool_calls and self.role != "assistant":
            raise PydanticCustomError("misplaced", "tool_calls are the assistant's")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise PydanticCustomError("tool_call_id", "tool_call_id is needed by the role tool, and by no other")
        return self

    def to_template(self) -> TemplateMessage:
        """As chat templates expect it."""
        role = "system" if self.role == "developer" else self.role
        message: TemplateMessage = {"role": role, "content": text_of(self.content)}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            calls = self.tool_calls
            message["tool_calls"] = [called(call.id, call.function.name, call.function.arguments) for call in calls]
        return message


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=8192, fail_fast=True)]


def to_template(messages: Sequence[ChatMessage]) -> list[TemplateMessage]:
    """A conversation as chat templates expect it."""
    return in_order_of_calls([message.to_template() for message in messages])


class ChatRequest(SamplingFields):
    """A conversation to go on with."""

    messages: Messages
    model: str | None = None
    logprobs: bool | None = None
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = None
    modalities: list[Literal["text"]] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ChatFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tool_choice: ChatToolChoice | None = None
    tools: ChatTools | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    chat_template_kwargs: Annotated[dict[str, bool | int | float | str], BeforeValidator(few_entries)] | None = None

    def formats(self) -> dict[str, Format | None]:
        return {**super().formats(), "response_format": self.response_format}
