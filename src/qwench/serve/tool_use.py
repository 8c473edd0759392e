"""What a request's tools come to: what the template is shown, and how the answer is read.

Knows no endpoint. Made by chat.py and responses.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qwench.runtime.request import SamplingParams
from qwench.serve.engine_client import EngineInfo
from qwench.serve.failures import ApiError
from qwench.serve.protocol.tools import Choice, Function
from qwench.text.tool_calls import ToolCallParser


@dataclass(frozen=True)
class ToolUse:
    """functions: all that the template is shown. names: of those that may be called; empty: the answer is only text."""

    functions: Sequence[Function]
    names: frozenset[str]

    @classmethod
    def of(cls, functions: Sequence[Function], choice: Choice) -> ToolUse:
        """Raises ApiError for a choice of tools that aren't there."""
        names = {function.name for function in functions}
        wanted = names if choice.names is None else set(choice.names)
        if unknown := sorted(wanted - names):
            raise ApiError.bad_request(
                f"tool_choice names {unknown[0]!r}, which isn't among the tools", param="tool_choice"
            )
        if choice.mode == "required" and not names:
            raise ApiError.bad_request("tool_choice demands a call, and there are no tools", param="tool_choice")
        if choice.mode == "required":
            raise ApiError.bad_request("tool_choice can't demand a call yet, only allow it", param="tool_choice")
        return cls(functions, frozenset() if choice.mode == "none" else frozenset(wanted))

    def template_variables(self) -> dict[str, Any]:
        """With `none` too: the prompt stays as it is when calls are allowed, and so in the prefix cache."""
        return shown_tools(self.functions)

    def adapt(self, params: SamplingParams, info: EngineInfo) -> SamplingParams:
        """Special tokens are shown where the tags of calls are some."""
        if self.names and info.tool_tags_are_special:
            return dataclasses.replace(params, skip_special_tokens=False)
        return params

    def make_parser(self) -> ToolCallParser | None:
        """For one answer."""
        return ToolCallParser(self.names) if self.names else None


def shown_tools(functions: Sequence[Function]) -> dict[str, Any]:
    """What the chat template gets to know of them."""
    return {"tools": [function.to_template() for function in functions]} if functions else {}
