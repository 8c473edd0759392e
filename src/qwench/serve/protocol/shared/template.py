"""What a request tells the chat template beside its messages and tools."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, TypeAdapter
from pydantic_core import PydanticCustomError

from qwench.serve.protocol.validation.body import Body, Flag, few_entries

FLAGS = ("enable_thinking", "add_generation_prompt")  # a template would take the text "false" for true

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "default", "auto"]

_BUDGETS = ("budget_tokens", "max_tokens")
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


def with_budget(data: Any) -> Any:
    """A request whose bound of thoughts stands in `thinking` or `reasoning`, as Anthropic's and OpenRouter's clients
    write it, with that as max_thinking_tokens."""
    if not isinstance(data, dict):
        return data
    for name in ("thinking", "reasoning"):
        inner = data.get(name)
        if not isinstance(inner, dict) or inner.keys().isdisjoint(_BUDGETS):
            continue
        budget = next((inner[key] for key in _BUDGETS if inner.get(key) is not None), None)
        data = {**data, name: {key: value for key, value in inner.items() if key not in _BUDGETS}}
        if data.get("max_thinking_tokens") is None:
            data["max_thinking_tokens"] = budget
    return data


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
