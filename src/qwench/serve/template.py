"""The variables of the chat template that a request sets. Called by the routes that take conversations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwench.serve.failures import ApiError
from qwench.serve.protocol.shared.template import Reasoning
from qwench.serve.protocol.validation.reading import ignore
from qwench.serve.service import Service

# Of the renderer and of Jinja: no request may set them, whether or not the template reads them.
RESERVED = frozenset((
    "messages", "tools", "documents", "chat_template", "continue_final_message", "raise_exception", "strftime_now",
    "range", "dict", "lipsum", "cycler", "joiner", "namespace",
))  # fmt: skip


def template_variables(
    service: Service, given: Mapping[str, Any] | None, effort: str | None, reasoning: Reasoning | None
) -> dict[str, Any]:
    """given: chat_template_kwargs. effort, reasoning: how much to think, "none" of it included. What the template
    doesn't read has no effect and is named as such. Raises ApiError for what requests may not set."""
    effort = effort or (reasoning.effort if reasoning else None)
    wishes = _thinking(effort, reasoning) | dict(given or {})
    known, allowed = service.text.template_variables, service.settings.template_variables
    variables = {}
    for name, value in wishes.items():
        if name in RESERVED or name.startswith("_") or name.endswith("_token") or name in known.difference(allowed):
            raise ApiError.bad_request(
                f"chat_template_kwargs may not set {name!r}; allowed: {', '.join(allowed) or 'none'}",
                param="chat_template_kwargs",
            )
        if name in known or name == "add_generation_prompt":
            variables[name] = value
        else:
            ignore(f"chat_template_kwargs.{name}" if name in (given or {}) else "reasoning_effort")
    return variables


def _thinking(effort: str | None, reasoning: Reasoning | None) -> dict[str, Any]:
    if effort == "none" or (reasoning and reasoning.enabled is False):
        return {"enable_thinking": False}
    if effort not in (None, "auto", "default"):
        return {"reasoning_effort": effort}
    return {"enable_thinking": True} if reasoning and reasoning.enabled else {}


def switched_thinking(
    service: Service, is_wanted: bool | None, budget: int | None, field: str
) -> tuple[dict[str, Any], int | None]:
    """What a switch for thinking does, as Anthropic and Ollama have one: variables of the template, and the
    max_thinking_tokens. A model whose template has no switch is held to a thought of no tokens. field: what to name
    where the model never thinks."""
    if is_wanted is None:
        return {}, budget
    if "enable_thinking" in service.text.template_variables:
        return {"enable_thinking": is_wanted}, budget
    has_thoughts = service.engine_info().has_thoughts
    if is_wanted and not has_thoughts:
        ignore(field)
    return {}, 0 if has_thoughts and not is_wanted else budget
