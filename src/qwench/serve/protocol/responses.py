"""The body of /v1/responses: what this server can do of OpenAI's newer interface. Nothing is stored between calls."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from qwench.serve.protocol.common import MAX_TOP_LOGPROBS, Body, Count
from qwench.serve.protocol.conversation import TemplateMessage, called, in_order_of_calls, text_of
from qwench.serve.protocol.formats import Format, ResponsesFormat
from qwench.serve.protocol.sampling import SamplingFields
from qwench.serve.protocol.tools import CallId, ResponsesToolChoice, ResponsesTools

LOGPROBS = "message.output_text.logprobs"


class InputText(Body):
    """A part of a message's content; `output_text` where a former answer is given back, with whatever came with it."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


Content = str | Annotated[list[InputText], Field(max_length=1024, fail_fast=True)]
Status = Literal["in_progress", "completed", "incomplete"]


class InputMessage(Body):
    """One turn; id and status where it is a former answer given back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    type: Literal["message"] = "message"
    id: str | None = None
    status: Status | None = None
    phase: str | None = None


class InputCall(Body):
    """A call of a former answer given back."""

    type: Literal["function_call"]
    call_id: CallId
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None


class InputCallOutput(Body):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Content
    id: str | None = None
    status: Status | None = None


def _kind(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "message")
    return kind if isinstance(kind, str) else ""


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[InputCallOutput, Tag("function_call_output")],
    Discriminator(
        _kind, custom_error_type="kind",
        custom_error_message="its type must be message, function_call or function_call_output",
    ),
]  # fmt: skip


def _to_template(item: InputMessage | InputCall | InputCallOutput) -> TemplateMessage:
    """As chat templates expect it, each call in a turn of its own."""
    if isinstance(item, InputCall):
        return {"role": "assistant", "content": "", "tool_calls": [called(item.call_id, item.name, item.arguments)]}
    if isinstance(item, InputCallOutput):
        return {"role": "tool", "content": text_of(item.output), "tool_call_id": item.call_id}
    return {"role": "system" if item.role == "developer" else item.role, "content": text_of(item.content)}


class TextOptions(Body):
    """The form of the answer."""

    format: ResponsesFormat | None = None


def _only_false(value: bool) -> bool:
    """In place of Literal[False], which takes 0 too."""
    if value:
        raise ValueError("nothing is stored, so no answer can be made in the background")
    return value


class ResponsesRequest(SamplingFields):
    """A text or a conversation to answer. instructions: a system turn before it."""

    n: None = None
    stop: None = None
    input: str | Annotated[list[Item], Field(min_length=1, max_length=8192, fail_fast=True)]
    model: str | None = None
    background: Annotated[bool, AfterValidator(_only_false)] | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    instructions: str | None = None
    max_output_tokens: Count | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    text: TextOptions | None = None
    tool_choice: ResponsesToolChoice | None = None
    tools: ResponsesTools | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    truncation: Literal["disabled"] | None = None

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    def formats(self) -> dict[str, Format | None]:
        return {**super().formats(), "text": self.text.format if self.text else None}

    def shown_format(self) -> dict[str, Any]:
        """The form of the answer as the response repeats it."""
        form = self.text.format if self.text else None
        return {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)

    def shown_tools(self) -> list[dict[str, Any]]:
        """The tools as the response repeats them."""
        return [
            {"parameters": None, "strict": False, **tool.model_dump(exclude_none=True)} for tool in self.tools or ()
        ]

    def shown_tool_choice(self) -> str | dict[str, Any]:
        """The choice as the response repeats it."""
        choice = self.tool_choice or "auto"
        return choice if isinstance(choice, str) else choice.model_dump()

    def to_messages(self) -> list[TemplateMessage]:
        """The conversation as chat templates expect it: calls belong to the answer before them."""
        messages: list[TemplateMessage] = (
            [{"role": "system", "content": self.instructions}] if self.instructions else []
        )
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        for message in map(_to_template, self.input):
            if "tool_calls" in message and messages and messages[-1]["role"] == "assistant":
                messages[-1].setdefault("tool_calls", []).extend(message["tool_calls"])
            else:
                messages.append(message)
        return in_order_of_calls(messages)
