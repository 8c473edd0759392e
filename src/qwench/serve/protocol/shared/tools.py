"""Tools in the bodies of /v1/chat/completions, /v1/responses and /v1/messages, which write the same things
differently."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, field_validator
from pydantic_core import PydanticCustomError

from qwench.serve.protocol.validation.body import Body, Flag
from qwench.serve.protocol.validation.reading import ignore

MAX_TOOLS = MAX_CALLS = 128

CallId = Annotated[str, Field(min_length=1, max_length=256)]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:/@-]{1,128}$")]  # MCP's, with those that gateways make
Mode = Literal["none", "auto", "required"]


class Choice(NamedTuple):
    """What a tool_choice means. names: the tools it is limited to; None: any. is_single: exactly one call is wanted."""

    mode: Mode
    names: list[str] | None = None
    is_single: bool = False


class Function(Body):
    """A function that the model may call. parameters: the JSON schema of its arguments."""

    places: ClassVar[tuple[str, ...]] = ("function",)
    path = "tools[]."
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Flag | None = None

    @field_validator("parameters")
    @classmethod
    def _takes_an_object(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        if parameters and None in parameters.values():  # as servers in Go write what isn't there
            parameters = {name: value for name, value in parameters.items() if value is not None}
        if parameters and parameters.get("type", "object") != "object":
            raise PydanticCustomError("parameters", 'parameters must be the schema of an object ("type": "object")')
        return parameters

    def to_template(self) -> dict[str, Any]:
        """As chat templates expect it; without `strict`, which only the server reads."""
        shown = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": {name: value for name, value in shown.items() if value is not None}}


class ChatTool(Body):
    places = ("tool",)
    path = "tools[]."
    type: Literal["function"]
    function: Function

    @classmethod
    def plain_form(cls, data: Any) -> Any:
        """Without a type, or flat, as /v1/responses and Anthropic have it."""
        if not isinstance(data, dict) or "function" in data:
            return {**data, "type": data.get("type") or "function"} if isinstance(data, dict) else data
        if not _is_function(data):
            return data
        return {"type": "function", "function": {name: data[name] for name in data if name != "type"}}


class ResponsesTool(Function):
    type: Literal["function"]

    @classmethod
    def plain_form(cls, data: Any) -> Any:
        """Without a type, or nested, as /v1/chat/completions has it."""
        if not isinstance(data, dict):
            return data
        if isinstance(data.get("function"), dict):
            data = {**data["function"], **{name: data[name] for name in data if name != "function"}}
        return {**data, "type": "function"} if _is_function(data) else data


class MessagesTool(Function):
    """As Anthropic has it. Other types than custom are tools that its models know without a schema."""

    places = ("function", "messages tool")
    parameters: dict[str, Any] | None = Field(default=None, alias="input_schema")
    type: Literal["custom"] | None = None

    @classmethod
    def plain_form(cls, data: Any) -> Any:
        """As /v1/chat/completions has it, too."""
        if isinstance(data, dict) and isinstance(data.get("function"), dict):
            return data["function"]
        return data


def _different(tools: list[Any]) -> list[Any]:
    if len({function.name for function in functions_of(tools)}) < len(tools):
        raise PydanticCustomError("same_name", "two tools have the same name")
    return tools


def functions_of(tools: list[ChatTool] | list[ResponsesTool] | list[MessagesTool] | None) -> list[Function]:
    return [tool.function if isinstance(tool, ChatTool) else tool for tool in tools or ()]


def _is_function(tool: Any) -> bool:
    """Whether the client calls it. OpenAI has tools that its own servers call, such as web_search, and ones that take
    free text."""
    if not isinstance(tool, dict) or "function" in tool or "input_schema" in tool:
        return True
    return not isinstance(tool.get("type"), str) or tool["type"] in ("function", "")


def _callable(tools: Any) -> Any:
    """Without tools that no client calls, if there are others."""
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        return tools
    known = [tool for tool in tools if _is_function(tool)]
    if not known:
        return _refuse_others(tools)
    for tool in tools:
        if not _is_function(tool):
            ignore(f"tools[].{tool['type']}")
    return known


def _refuse_others(tools: list[Any]) -> list[Any]:
    """What the classes would say of a web_search is that it has no name. Their own word for a function is custom."""
    others = list(dict.fromkeys(tool["type"][:64] for tool in tools if tool["type"] != "custom"))
    if others:
        raise PydanticCustomError(
            "no_function", "there is no function among the tools, only {others}, which this server doesn't know",
            {"others": ", ".join(others[:8])},
        )  # fmt: skip
    return tools


ChatTools = Annotated[
    list[ChatTool], Field(max_length=MAX_TOOLS, fail_fast=True), AfterValidator(_different), BeforeValidator(_callable)
]
ResponsesTools = Annotated[
    list[ResponsesTool], Field(max_length=MAX_TOOLS, fail_fast=True), AfterValidator(_different),
    BeforeValidator(_callable),
]  # fmt: skip
MessagesTools = Annotated[
    list[MessagesTool], Field(max_length=MAX_TOOLS, fail_fast=True), AfterValidator(_different),
    BeforeValidator(_callable),
]  # fmt: skip


def _flat_reference(value: Any) -> Any:
    """A tool by its name as /v1/responses has it, of how any API writes it."""
    if not isinstance(value, dict):
        return value
    function = value.get("function")
    name = function.get("name") if isinstance(function, dict) else value.get("name")
    kind = value.get("type") or "function"
    return {"type": "function" if kind == "tool" else kind, "name": name}


def _nested_reference(value: Any) -> Any:
    value = _flat_reference(value)
    return {"type": value["type"], "function": {"name": value["name"]}} if isinstance(value, dict) else value


class FunctionReference(Body):
    path = "tool_choice."
    name: FunctionName


class ChatToolReference(Body):
    """A tool by its name; as tool_choice: that one must be called, once."""

    path = "tool_choice."
    type: Literal["function"]
    function: FunctionReference

    @classmethod
    def plain_form(cls, data: Any) -> Any:
        return _nested_reference(data)

    def to_choice(self) -> Choice:
        return Choice("required", [self.function.name], is_single=True)


class ResponsesToolReference(FunctionReference):
    """A tool by its name; as tool_choice: that one must be called, once."""

    type: Literal["function"]

    @classmethod
    def plain_form(cls, data: Any) -> Any:
        return _flat_reference(data)

    def to_choice(self) -> Choice:
        return Choice("required", [self.name], is_single=True)


class AllowedToolList(Body):
    path = "tool_choice."
    mode: Literal["auto", "required"]
    tools: Annotated[list[ChatToolReference], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class ChatAllowedTools(Body):
    """Some of the tools: the others are shown to the model, and may not be called."""

    path = "tool_choice."
    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolList

    @classmethod
    def plain_form(cls, data: Any) -> Any:
        if isinstance(data, dict) and "allowed_tools" not in data:
            names = [name for name in ("mode", "tools") if name in data]
            return {"type": data.get("type"), "allowed_tools": {name: data[name] for name in names}}
        return data

    def to_choice(self) -> Choice:
        return Choice(self.allowed_tools.mode, [tool.function.name for tool in self.allowed_tools.tools])


class ResponsesAllowedTools(Body):
    """Some of the tools: the others are shown to the model, and may not be called."""

    path = "tool_choice."
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[ResponsesToolReference], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]

    @classmethod
    def plain_form(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("allowed_tools"), dict):
            return {"type": data.get("type"), **data["allowed_tools"]}
        return data

    def to_choice(self) -> Choice:
        return Choice(self.mode, [tool.name for tool in self.tools])


_MODES = {"any": "required", "required": "required", "auto": "auto", "none": "none"}


def _mode_of(value: Any) -> Any:
    """A choice that names no tool as OpenAI's word for it: Anthropic writes it as an object, and "any" for required."""
    if isinstance(value, dict) and value.get("disable_parallel_tool_use"):
        ignore("tool_choice.disable_parallel_tool_use")
    word = value.get("type") if isinstance(value, dict) else value
    return _MODES.get(word, value) if isinstance(word, str) else value


def _kind_of_choice(value: Any) -> str:
    if isinstance(value, str):
        return "mode"
    kind = value.get("type") or "function" if isinstance(value, dict) else getattr(value, "type", "")
    return "function" if kind == "tool" else str(kind)


_KINDS = Discriminator(
    _kind_of_choice, custom_error_type="kind",
    custom_error_message="it must be none, auto, required, one function or allowed_tools",
)  # fmt: skip
ChatToolChoice: TypeAlias = Annotated[
    Annotated[Mode, Tag("mode")]
    | Annotated[ChatToolReference, Tag("function")]
    | Annotated[ChatAllowedTools, Tag("allowed_tools")],
    _KINDS, BeforeValidator(_mode_of),
]  # fmt: skip
ResponsesToolChoice: TypeAlias = Annotated[
    Annotated[Mode, Tag("mode")]
    | Annotated[ResponsesToolReference, Tag("function")]
    | Annotated[ResponsesAllowedTools, Tag("allowed_tools")],
    _KINDS, BeforeValidator(_mode_of),
]  # fmt: skip


def choice_of(choice: ChatToolChoice | ResponsesToolChoice | None) -> Choice:
    if choice is None or isinstance(choice, str):
        return Choice(choice or "auto")
    return choice.to_choice()
