"""Tools in the bodies of /v1/chat/completions and /v1/responses, which write the same things differently."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import AfterValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from qwench.serve.protocol.common import Body

MAX_TOOLS = MAX_CALLS = 128

CallId = Annotated[str, Field(min_length=1, max_length=256)]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Mode = Literal["none", "auto", "required"]


class Choice(NamedTuple):
    """What a tool_choice means. names: the tools it is limited to; None: any. is_single: exactly one call is wanted."""

    mode: Mode
    names: list[str] | None = None
    is_single: bool = False


class Function(Body):
    """A function that the model may call. parameters: the JSON schema of its arguments."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _takes_an_object(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        if parameters and parameters.get("type", "object") != "object":
            raise PydanticCustomError("parameters", 'parameters must be the schema of an object ("type": "object")')
        return parameters

    def to_template(self) -> dict[str, Any]:
        """As chat templates expect it; without `strict`, which only the server reads."""
        shown = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": {name: value for name, value in shown.items() if value is not None}}


class ChatTool(Body):
    type: Literal["function"]
    function: Function


class ResponsesTool(Function):
    type: Literal["function"]


def _different(tools: list[Any]) -> list[Any]:
    if len({function.name for function in functions_of(tools)}) < len(tools):
        raise PydanticCustomError("same_name", "two tools have the same name")
    return tools


def functions_of(tools: list[ChatTool] | list[ResponsesTool] | None) -> list[Function]:
    return [tool.function if isinstance(tool, ChatTool) else tool for tool in tools or ()]


ChatTools = Annotated[list[ChatTool], Field(max_length=MAX_TOOLS, fail_fast=True), AfterValidator(_different)]
ResponsesTools = Annotated[list[ResponsesTool], Field(max_length=MAX_TOOLS, fail_fast=True), AfterValidator(_different)]


class FunctionReference(Body):
    name: FunctionName


class ChatToolReference(Body):
    """A tool by its name; as tool_choice: that one must be called, once."""

    type: Literal["function"]
    function: FunctionReference

    def to_choice(self) -> Choice:
        return Choice("required", [self.function.name], is_single=True)


class ResponsesToolReference(FunctionReference):
    """A tool by its name; as tool_choice: that one must be called, once."""

    type: Literal["function"]

    def to_choice(self) -> Choice:
        return Choice("required", [self.name], is_single=True)


class AllowedToolList(Body):
    mode: Literal["auto", "required"]
    tools: Annotated[list[ChatToolReference], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class ChatAllowedTools(Body):
    """Some of the tools: the others are shown to the model, and may not be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolList

    def to_choice(self) -> Choice:
        return Choice(self.allowed_tools.mode, [tool.function.name for tool in self.allowed_tools.tools])


class ResponsesAllowedTools(Body):
    """Some of the tools: the others are shown to the model, and may not be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[ResponsesToolReference], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]

    def to_choice(self) -> Choice:
        return Choice(self.mode, [tool.name for tool in self.tools])


ChatToolChoice: TypeAlias = Mode | ChatToolReference | ChatAllowedTools
ResponsesToolChoice: TypeAlias = Mode | ResponsesToolReference | ResponsesAllowedTools


def choice_of(choice: ChatToolChoice | ResponsesToolChoice | None) -> Choice:
    if choice is None or isinstance(choice, str):
        return Choice(choice or "auto")
    return choice.to_choice()
