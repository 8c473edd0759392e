"""The body of /v1/responses: what this server can do of OpenAI's newer interface. Nothing is stored between calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from qwench.serve.protocol.shared.conversation import (
    MAX_TURNS,
    Content,
    TemplateMessage,
    called,
    few_turns,
    in_order_of_calls,
    parts_text,
    result_text,
    written_arguments,
)
from qwench.serve.protocol.shared.formats import Format, ResponsesFormat
from qwench.serve.protocol.shared.sampling import SamplingFields
from qwench.serve.protocol.shared.template import Effort, Reasoning, TemplateVariables, with_budget
from qwench.serve.protocol.shared.tools import CallId, ResponsesToolChoice, ResponsesTools
from qwench.serve.protocol.validation.body import MAX_ENTRIES, Body, Flag, Limit, StreamOptions, TopLogprobs
from qwench.serve.protocol.validation.other_forms import no_flag
from qwench.serve.protocol.validation.reading import ignore

LOGPROBS = "message.output_text.logprobs"
INCLUDED = (LOGPROBS, "reasoning.encrypted_content")  # the latter is of no use where nothing is encrypted


class _Item(Body):
    places = ("item",)
    path = "input[]."
    id: str | None = None
    status: Any = None


class InputMessage(_Item):
    """One turn; id and status where it is a former answer given back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    type: Literal["message"] = "message"
    phase: str | None = None

    @classmethod
    def plain_form(cls, data: Any) -> Any:
        is_empty = isinstance(data, dict) and data.get("content") is None and data.get("role") != "user"
        return {**data, "content": ""} if is_empty else data


class InputCall(_Item):
    """A call of a former answer given back."""

    type: Literal["function_call"]
    call_id: CallId
    name: str
    arguments: Annotated[str, BeforeValidator(written_arguments)] = ""


class InputCallOutput(_Item):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Annotated[str, BeforeValidator(result_text, json_schema_input_type=Any)]


class InputThoughts(_Item):
    """What a former answer thought before it spoke, or a summary of it."""

    type: Literal["reasoning"]
    content: Any = None
    summary: Any = None
    encrypted_content: str | None = None

    @property
    def text(self) -> str:
        return parts_text(self.content) or parts_text(self.summary)


_KINDS = ("message", "function_call", "function_call_output", "reasoning")
_OF_OTHERS = ("item_reference", "compaction")  # and whatever OpenAI's servers do by themselves: *_call, *_call_output


def _kind(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "message")
    return kind if isinstance(kind, str) else ""


def _readable(items: Any) -> Any:
    """Without items that mean nothing to a model that isn't OpenAI's own, if there are others."""
    if not isinstance(items, list) or len(items) > MAX_TURNS:
        return [items] if isinstance(items, dict) else items
    kept = []
    for item in items:
        kind = _kind(item)
        if kind in _KINDS or not kind.endswith((*_OF_OTHERS, "_call", "_call_output")):
            is_part = isinstance(item, str) or kind in ("text", "input_text")
            kept.append({"role": "user", "content": [item]} if is_part else item)
        else:
            ignore(f"input[].{kind}")
    return kept


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[InputCallOutput, Tag("function_call_output")]
    | Annotated[InputThoughts, Tag("reasoning")],
    Discriminator(
        _kind, custom_error_type="kind",
        custom_error_message="its type must be message, function_call, function_call_output or reasoning",
    ),
]  # fmt: skip


def _to_template(item: InputMessage | InputCall | InputCallOutput | InputThoughts) -> TemplateMessage:
    """As chat templates expect it, each call and each thought in a turn of its own."""
    if isinstance(item, InputThoughts):
        return {"role": "assistant", "content": "", "reasoning_content": item.text}
    if isinstance(item, InputCall):
        return {"role": "assistant", "content": "", "tool_calls": [called(item.call_id, item.name, item.arguments)]}
    if isinstance(item, InputCallOutput):
        return {"role": "tool", "content": item.output, "tool_call_id": item.call_id}
    return {"role": "system" if item.role == "developer" else item.role, "content": item.content}


def _joined(items: Iterable[TemplateMessage]) -> list[TemplateMessage]:
    """Thoughts belong to the answer after them, calls to the one before; a thought that nothing follows is dropped."""
    messages: list[TemplateMessage] = []
    thoughts = ""
    for message in items:
        is_answer = message["role"] == "assistant"
        last: TemplateMessage = messages[-1] if messages else {"role": ""}
        if "reasoning_content" in message:
            thoughts += message["reasoning_content"]
        elif "tool_calls" in message and last["role"] == "assistant" and not thoughts:
            last.setdefault("tool_calls", []).extend(message["tool_calls"])
        else:
            messages.append(message | ({"reasoning_content": thoughts} if thoughts and is_answer else {}))
            thoughts = ""
    return messages


class TextOptions(Body):
    """The form of the answer."""

    places = ("verbosity",)
    path = "text."
    format: ResponsesFormat | None = None


def _only_false(value: bool) -> bool:
    """In place of Literal[False], which takes 0 too."""
    if value:
        raise ValueError("nothing is stored, so no answer can be made in the background")
    return value


def _useful(include: Any) -> Any:
    """What else the answer is to hold, without what this server has none of."""
    if not isinstance(include, list) or len(include) > MAX_ENTRIES or not all(isinstance(i, str) for i in include):
        return include
    for wish in include:
        if wish not in INCLUDED:
            ignore(f"include[].{wish}")
    return [wish for wish in include if wish in INCLUDED]


class ResponsesRequest(SamplingFields):
    """A text or a conversation to answer. instructions: a system turn before it. truncation: with auto the oldest turns
    are left out of a conversation that is too long."""

    places = ("request", "answers", "conversation", "responses")
    n: Annotated[Literal[1] | None, BeforeValidator(no_flag)] = None
    input: Annotated[
        str
        | Annotated[
            list[Item], Field(min_length=1, max_length=MAX_TURNS, fail_fast=True), BeforeValidator(_readable)
        ],
        BeforeValidator(few_turns),
    ]  # fmt: skip
    background: Annotated[Flag, AfterValidator(_only_false)] | None = None
    chat_template_kwargs: TemplateVariables | None = None
    include: Annotated[list[str] | None, BeforeValidator(_useful)] = None
    instructions: str | None = None
    max_output_tokens: Limit | None = None
    metadata: dict[str, Any] | None = None
    parallel_tool_calls: Flag | None = None
    reasoning: Reasoning | None = None
    reasoning_effort: Effort | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    text: TextOptions | None = None
    tool_choice: ResponsesToolChoice | None = None
    tools: ResponsesTools | None = None
    top_logprobs: TopLogprobs | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: str | None = None

    @classmethod
    def plain_form(cls, data: Any) -> Any:
        return with_budget(data)

    @property
    def effort(self) -> str | None:
        return self.reasoning_effort or (self.reasoning.effort if self.reasoning else None)

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
        """The conversation as chat templates expect it."""
        messages: list[TemplateMessage] = (
            [{"role": "system", "content": self.instructions}] if self.instructions else []
        )
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        return in_order_of_calls([*messages, *_joined(map(_to_template, self.input))])
