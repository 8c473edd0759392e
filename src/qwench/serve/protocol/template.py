"""What a request tells the chat template beside its messages and tools."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, TypeAdapter
from pydantic_core import PydanticCustomError

from qwench.serve.protocol.common import Body, Flag, few_entries

FLAGS = ("enable_thinking", "add_generation_prompt")  # a template would take the text "false" for true

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "default", "auto"]

_flag: TypeAdapter[bool] = TypeAdapter(Flag)


def _with_flags(variables: Any) -> Any:
    """Raises PydanticCustomError where a flag is none."""
    if not isinstance(variables, dict):
        return variables
    given = {name: value for name, value in variables.items() if value is not None}
    for name in FLAGS:
        if name in given:
            try:
                given[name] = _flag.validate_python(given[name])
            except ValueError:
                raise PydanticCustomError("flag", "{name} must be true or false", {"name": name}) from None
    return given


TemplateVariables = Annotated[
    dict[str, bool | int | float | str], BeforeValidator(_with_flags), BeforeValidator(few_entries)
]


class Reasoning(Body):
    """How much to think, as /v1/responses has it."""

    places = ("reasoning",)
    path = "reasoning."
    effort: Effort | None = None
    enabled: Flag | None = None

    @classmethod
    def plain_form(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"effort": data}
        return {"enabled": data} if isinstance(data, bool) else data
