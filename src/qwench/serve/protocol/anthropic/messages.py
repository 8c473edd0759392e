"""The body of /v1/messages and /v1/messages/count_tokens, as Anthropic's API defines it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from qwench.serve.protocol.anthropic.content_blocks import (
    BETWEEN,
    Blocks,
    RedactedThinkingBlock,
    Texts,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    joined_text,
)
from qwench.serve.protocol.shared.conversation import MAX_TURNS, TemplateMessage, few_turns, in_order_of_calls
from qwench.serve.protocol.shared.formats import Format, ResponsesFormat
from qwench.serve.protocol.shared.sampling import SamplingFields, StopStrings
from qwench.serve.protocol.shared.template import Effort, TemplateVariables
from qwench.serve.protocol.shared.tools import Choice, FunctionName, MessagesTools
from qwench.serve.protocol.validation.body import LAX, NUMBER, Body, Flag, StopString
from qwench.serve.protocol.validation.other_forms import MAX_TOKENS, no_flag, unless_minus_one, without_empty

BILLING = "x-anthropic-billing-header:"  # how a block begins that Claude Code changes with every request


class Turn(Body):
    """One turn. A user's holds the results of the calls before it."""

    places = ("message", "turn")
    path = "messages[]."
    role: Literal["user", "assistant", "system"]
    content: Blocks

    def to_template(self) -> Iterator[TemplateMessage]:
        """As chat templates expect it: results are turns of their own."""
        if self.role == "assistant":
            yield self._answer()
            return
        texts: list[str] = []
        for block in self.content:
            if isinstance(block, ToolResultBlock):
                yield from _said(self.role, texts)
                texts = []
                yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": block.text}
            elif not isinstance(block, ThinkingBlock | RedactedThinkingBlock | ToolUseBlock):
                texts.append(block.text)
        yield from _said(self.role, texts)

    @property
    def has_calls(self) -> bool:
        return any(isinstance(block, ToolUseBlock) for block in self.content)

    def _answer(self) -> TemplateMessage:
        """The blocks of an answer are one text, cut by what stands between them."""
        message: TemplateMessage = {"role": "assistant", "content": ""}
        calls, thoughts = [], []
        for block in self.content:
            if isinstance(block, ToolUseBlock):
                function = {"name": block.name, "arguments": block.input}
                calls.append({"type": "function", "id": block.id, "function": function})
            elif isinstance(block, ThinkingBlock):
                thoughts.append(block.thinking)
            elif not isinstance(block, RedactedThinkingBlock):
                message["content"] += block.text
        if any(thoughts):
            message["reasoning_content"] = "".join(thoughts)
        return message | ({"tool_calls": calls} if calls else {})

    @model_validator(mode="after")
    def _has_what_its_role_has(self) -> Turn:
        if self.role != "assistant" and self.has_calls:
            raise PydanticCustomError("misplaced", "tool_use blocks are the assistant's")
        if self.role != "user" and any(isinstance(block, ToolResultBlock) for block in self.content):
            raise PydanticCustomError("misplaced", "tool_result blocks are the user's")
        return self


def _said(role: str, texts: list[str]) -> Iterable[TemplateMessage]:
    return [{"role": role, "content": BETWEEN.join(texts)}] if texts else []


class Thinking(Body):
    """Whether to think before the answer. budget_tokens: at most so many of them. display: whether it is shown."""

    places = ("thinking",)
    path = "thinking."
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Annotated[int, LAX, Field(ge=0, lt=MAX_TOKENS), NUMBER] | None = None
    display: Literal["summarized", "omitted"] | None = None

    @property
    def is_on(self) -> bool:
        return self.type != "disabled"


class OutputConfig(Body):
    """effort: how much to think, for templates that know it. format: of the answer."""

    places = ("output_config",)
    path = "output_config."
    effort: Effort | None = None
    format: ResponsesFormat | None = None


class MessagesToolChoice(Body):
    """any: with a call; tool: with one of that name."""

    places = ("tool_choice",)
    path = "tool_choice."
    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: Flag | None = None

    @classmethod
    def plain_form(cls, data: Any) -> Any:
        """OpenAI's words."""
        if isinstance(data, str):
            data = {"type": data}
        is_required = isinstance(data, dict) and data.get("type") == "required"
        return {**data, "type": "any"} if is_required else data

    @model_validator(mode="after")
    def _names_its_tool(self) -> MessagesToolChoice:
        if self.type == "tool" and self.name is None:
            raise PydanticCustomError("missing", "name is missing; with the type tool it says which")
        return self

    def to_choice(self) -> Choice:
        if self.type == "tool":
            return Choice("required", [self.name or ""], is_single=True)
        return Choice("required" if self.type == "any" else "none" if self.type == "none" else "auto")


class MessagesRequest(SamplingFields):
    """A conversation to answer; if it ends with the assistant, the answer goes on with that turn. max_tokens: of the
    answer, 0 only reads the prompt; counting needs none."""

    places = ("request", "answers", "conversation", "messages")
    messages: Annotated[
        list[Turn], Field(min_length=1, max_length=MAX_TURNS, fail_fast=True), BeforeValidator(few_turns)
    ]  # fmt: skip
    chat_template_kwargs: TemplateVariables | None = None
    max_tokens: (
        Annotated[
            Annotated[int, LAX, Field(ge=0, lt=MAX_TOKENS), NUMBER] | None, BeforeValidator(unless_minus_one)
        ]
        | None
    ) = None  # fmt: skip
    n: Annotated[Literal[1] | None, BeforeValidator(no_flag)] = None
    output_config: OutputConfig | None = None
    stop: Annotated[
        StopString | StopStrings | None, Field(alias="stop_sequences"), BeforeValidator(without_empty)
    ] = None  # fmt: skip
    stream: Flag | None = None
    system: Texts | None = None
    thinking: Thinking | None = None
    tool_choice: MessagesToolChoice | None = None
    tools: MessagesTools | None = None

    @model_validator(mode="after")
    def _ends_with_a_turn_to_answer(self) -> MessagesRequest:
        if self.messages[-1].role == "assistant" and self.messages[-1].has_calls:
            raise PydanticCustomError(
                "results", "the last turn has tool_use blocks; their tool_result blocks must follow"
            )
        return self

    @property
    def goes_on(self) -> bool:
        """Whether the answer is the rest of the last turn."""
        return self.messages[-1].role == "assistant"

    @property
    def choice(self) -> Choice:
        return Choice("auto") if self.tool_choice is None else self.tool_choice.to_choice()

    @property
    def is_parallel(self) -> bool | None:
        """Whether several calls may be made; None: as it comes."""
        return False if self.tool_choice and self.tool_choice.disable_parallel_tool_use else None

    def formats(self) -> dict[str, Format | None]:
        return {**super().formats(), "output_config": self.output_config.format if self.output_config else None}

    def to_messages(self) -> list[TemplateMessage]:
        """As chat templates expect them. Claude Code's billing block would keep a prompt out of the prefix cache."""
        texts = [block for block in self.system or () if not block.text.startswith(BILLING)]
        system: list[TemplateMessage] = [{"role": "system", "content": joined_text(texts)}] if texts else []
        return in_order_of_calls([*system, *(part for turn in self.messages for part in turn.to_template())])
