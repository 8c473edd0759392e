"""The body of /v1/responses: what this server can do of OpenAI's newer interface. Nothing is stored between calls."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from qwench.serve.protocol.chat import TextFormat
from qwench.serve.protocol.common import MAX_TOP_LOGPROBS, Body, Count, SamplingFields

LOGPROBS = "message.output_text.logprobs"


class InputText(Body):
    """A part of a message's content; `output_text` where a former answer is given back, with whatever came with it."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputMessage(Body):
    """One turn; id and status where it is a former answer given back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[InputText], Field(max_length=1024, fail_fast=True)]
    type: Literal["message"] = "message"
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: str | None = None

    def to_template(self) -> dict[str, Any]:
        """As chat templates expect it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class TextOptions(Body):
    """The form of the answer."""

    format: TextFormat | None = None


def _only_false(value: bool) -> bool:
    """In place of Literal[False], which takes 0 too."""
    if value:
        raise ValueError("nothing is stored, so no answer can be made in the background")
    return value


class ResponsesRequest(SamplingFields):
    """A text or a conversation to answer. instructions: a system turn before it."""

    n: None = None
    stop: None = None
    input: str | Annotated[list[InputMessage], Field(min_length=1, max_length=8192, fail_fast=True)]
    model: str | None = None
    background: Annotated[bool, AfterValidator(_only_false)] | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    instructions: str | None = None
    max_output_tokens: Count | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    text: TextOptions | None = None
    tool_choice: Literal["auto", "none"] | None = None
    tools: Annotated[list[Any], Field(max_length=0, fail_fast=True)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    truncation: Literal["disabled"] | None = None

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    def to_messages(self) -> list[dict[str, Any]]:
        """The conversation as chat templates expect it."""
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        return [*messages, *(message.to_template() for message in self.input)]
