"""The body of /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from qwench.serve.protocol.shared.conversation import (
    MAX_TURNS,
    Content,
    TemplateMessage,
    called,
    few_turns,
    in_order_of_calls,
    result_text,
    text_and_thoughts,
    written_arguments,
)
from qwench.serve.protocol.shared.formats import ChatFormat, Format, without_texts
from qwench.serve.protocol.shared.sampling import SamplingFields
from qwench.serve.protocol.shared.template import Effort, Reasoning, TemplateVariables, with_budget
from qwench.serve.protocol.shared.tools import MAX_CALLS, CallId, ChatToolChoice, ChatTools
from qwench.serve.protocol.validation.body import Body, Flag, Limit, StreamOptions, TopLogprobs
from qwench.serve.protocol.validation.other_forms import thoughts_of, unless_empty
from qwench.serve.protocol.validation.reading import ignore


class CalledFunction(Body):
    """arguments: JSON, as the model wrote it, or the object itself."""

    places = ("call",)
    path = "tool_calls[]."
    name: str
    arguments: Annotated[str, BeforeValidator(written_arguments)] = ""


class MessageToolCall(Body):
    """A call of a former answer; index where it comes from a stream."""

    places = ("call",)
    path = "tool_calls[]."
    function: CalledFunction
    id: Annotated[CallId | None, BeforeValidator(unless_empty)] = None
    type: Literal["function"] | None = None
    index: int | None = None


class ChatMessage(Body):
    """One turn. `developer` is what OpenAI calls `system` now; `tool` has the result of a call. prefix: the answer goes
    on with this turn, the last one."""

    places = ("message",)
    path = "messages[]."
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_call_id: Annotated[CallId | None, BeforeValidator(unless_empty)] = None
    tool_calls: Annotated[list[MessageToolCall], Field(max_length=MAX_CALLS, fail_fast=True)] | None = None
    reasoning_content: Annotated[str | None, BeforeValidator(thoughts_of)] = None
    refusal: str | None = None
    prefix: Flag | None = None

    @classmethod
    def plain_form(cls, data: Any) -> Any:
        """A tool's result may be any JSON; thoughts may stand among the parts; OpenAI's function_call was one call."""
        if not isinstance(data, dict):
            return data
        content, role = data.get("content"), data.get("role")
        if role == "function" or (role == "tool" and not isinstance(content, str)):
            return {**data, "role": "tool", "content": result_text(content)}
        call = data.get("function_call")
        if isinstance(call, dict) and not data.get("tool_calls"):
            data = {name: value for name, value in data.items() if name != "function_call"}
            data["tool_calls"] = [{"function": call}]
        if content is None or isinstance(content, str):
            return data
        content, thoughts = text_and_thoughts(content)
        return data | {"content": content} | ({"reasoning_content": thoughts} if thoughts else {})

    @model_validator(mode="after")
    def _has_what_its_role_needs(self) -> ChatMessage:
        if self.content is None and self.role == "user":
            raise PydanticCustomError("missing", "content is missing; a user's turn needs it")
        if self.tool_calls and self.role != "assistant":
            raise PydanticCustomError("misplaced", "tool_calls are the assistant's")
        if self.tool_call_id is not None and self.role != "tool":
            ignore("messages[].tool_call_id")
        return self

    @property
    def says_nothing(self) -> bool:
        """A system turn that isn't there: gateways send null for it."""
        return self.content is None and self.role in ("system", "developer")

    def to_template(self) -> TemplateMessage:
        """As chat templates expect it."""
        role = "system" if self.role == "developer" else self.role
        message: TemplateMessage = {"role": role, "content": self.content or self.refusal or ""}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None and self.role == "tool":
            message["tool_call_id"] = self.tool_call_id
        if self.reasoning_content and self.role == "assistant":
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            calls = self.tool_calls
            message["tool_calls"] = [called(call.id, call.function.name, call.function.arguments) for call in calls]
        return message


Turns = Annotated[list[ChatMessage], Field(max_length=MAX_TURNS, fail_fast=True), BeforeValidator(few_turns)]
Messages = Annotated[Turns, Field(min_length=1)]


def to_template(messages: Sequence[ChatMessage]) -> list[TemplateMessage]:
    """A conversation as chat templates expect it."""
    return in_order_of_calls([message.to_template() for message in messages if not message.says_nothing])


class ChatRequest(SamplingFields):
    """A conversation to go on with. continue_final_message: with its last turn, instead of a new one."""

    places = ("request", "answers", "conversation", "chat")
    messages: Messages
    continue_final_message: Flag | None = None
    logprobs: Flag | None = None
    max_completion_tokens: Limit | None = None
    max_tokens: Limit | None = None
    modalities: list[Literal["text"]] | None = None
    parallel_tool_calls: Flag | None = None
    prompt_logprobs: TopLogprobs | None = None
    reasoning: Reasoning | None = None
    reasoning_effort: Effort | None = None
    response_format: ChatFormat | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    tool_choice: ChatToolChoice | None = None
    tools: ChatTools | None = None
    top_logprobs: TopLogprobs | None = None
    chat_template_kwargs: TemplateVariables | None = None

    @classmethod
    def plain_form(cls, data: Any) -> Any:
        """`logprobs` may be a number, as completions have it."""
        data = with_budget(without_texts(data))
        if isinstance(data, dict) and type(count := data.get("logprobs")) is int and count > 1:
            return {**data, "logprobs": True, "top_logprobs": data.get("top_logprobs") or count}
        return data

    @property
    def goes_on(self) -> bool:
        """Whether the answer is the rest of the last turn."""
        return bool(self.continue_final_message or self.messages[-1].prefix)

    def formats(self) -> dict[str, Format | None]:
        return {**super().formats(), "response_format": self.response_format}
