"""The variables of the chat template that a request sets. Called by the routes that take conversations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from qwench.runtime.sampling.sampling_params import SamplingParams
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
        if name in known or name == "add_generation_prompt" or (name == "enable_thinking" and _can_switch(service)):
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


def switched_thinking(service: Service, is_wanted: bool | None, field: str) -> dict[str, Any]:
    """What a switch for thinking does, as Anthropic and Ollama have one: variables of the template. field: what to name
    where the model never thinks."""
    if is_wanted is None:
        return {}
    if _can_switch(service):
        return {"enable_thinking": is_wanted}
    if is_wanted:
        ignore(field)
    return {}


def chat_params(service: Service, params: SamplingParams, template: Mapping[str, Any]) -> SamplingParams:
    """How to sample a chat turn. A model that thinks, whose template has no switch, is held to a thought of no tokens
    where it isn't to think."""
    params = service.engine_info().for_chat(params)
    has_switch = "enable_thinking" in service.text.template_variables
    if params.thinks and not has_switch and template.get("enable_thinking") is False:
        return dataclasses.replace(params, max_thinking_tokens=0)
    return params


def _can_switch(service: Service) -> bool:
    """Whether there is a difference between thinking and not: the template can turn it off, or `chat_params`."""
    return "enable_thinking" in service.text.template_variables or service.engine_info().has_thoughts
