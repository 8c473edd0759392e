"""A request's tools: variables for the chat template, the grammar of the answer, and its tool-call parser.

Made by the routes that take tools.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.runtime.structured_output.grammar import Grammar
from qwench.serve.failures import ApiError
from qwench.serve.protocol.shared.tools import Choice, Function
from qwench.serve.settings import ServeSettings
from qwench.text.tool_calls import TagKind, ToolCallParser
from qwench.text.tool_grammar import call_grammar


@dataclass(frozen=True)
class ToolUse:
    """functions: all that the template is shown. names: of those that may be called; empty: the answer is only text.
    is_required: the answer consists of calls. is_single: it has one call at most."""

    functions: Sequence[Function]
    names: frozenset[str]
    is_required: bool
    is_single: bool

    @classmethod
    def of(cls, functions: Sequence[Function], choice: Choice, is_parallel: bool | None) -> ToolUse:
        """Raises ApiError for a choice of tools that aren't there."""
        names = frozenset(function.name for function in functions)
        wanted = names if choice.names is None else frozenset(choice.names)
        if unknown := sorted(wanted - names):
            raise ApiError.bad_request(
                f"tool_choice names {unknown[0]!r}, which isn't among the tools", param="tool_choice"
            )
        if choice.mode == "required" and not names:
            raise ApiError.bad_request("tool_choice demands a call, and there are no tools", param="tool_choice")
        if choice.mode == "none":
            wanted = frozenset()
        return cls(functions, wanted, choice.mode == "required", choice.is_single or is_parallel is False)

    def template_variables(self) -> dict[str, Any]:
        """With `none` too: the prompt stays as it is when calls are allowed, and so in the prefix cache."""
        return shown_tools(self.functions)

    def adapt(
        self, params: SamplingParams, format_field: str | None, tags: TagKind
    ) -> tuple[SamplingParams, str | None]:
        """Adds the tools' grammar. format_field: the request's field that the grammar comes from, before and after.

        A grammar enforces required, single and strict calls; one of the request's own that says it all, as
        structured_outputs, stays as it is. Raises ApiError or RequestError for what can't go together.
        """
        if not self.names:
            return params, format_field
        if tags == "special tokens":
            params = dataclasses.replace(params, skip_special_tokens=False)
        if format_field == "structured_outputs":
            if self.is_required:
                raise ApiError.bad_request("tool_choice and structured_outputs both say what form the answer must have")
            return params, format_field
        functions = [function for function in self.functions if function.name in self.names]
        if not (self.is_required or self.is_single or params.grammar or any(function.strict for function in functions)):
            return params, format_field
        grammar = call_grammar(
            [{"function": function.model_dump(exclude_none=True)} for function in functions], tags,
            is_required=self.is_required, is_single=self.is_single, answer_schema=_schema(params.grammar),
            is_answer_strict=params.grammar is not None and params.grammar.is_strict,
        )  # fmt: skip
        return dataclasses.replace(params, grammar=grammar), "tools"

    def parser_maker(
        self, settings: ServeSettings, params: SamplingParams, format_field: str | None, *, is_whole: bool = False
    ) -> Callable[[], ToolCallParser | None]:
        """Makes a reader of one answer's calls. params and format_field: as `adapt` gave them. is_whole: a call is
        given when it is complete.

        Where the tools' grammar sees to it a call is what the strict rule says, and a document that was asked for is
        none, whatever it looks like. Calls are given as they come, but for those that only their end makes certain.
        """
        if not self.names:
            return lambda: None
        is_document = params.grammar is not None and params.grammar.kind in ("json_schema", "json_object")
        is_enforced = format_field == "tools"
        is_strict = settings.strict_calls or is_enforced or is_document
        is_whole = is_whole or settings.whole_calls or (is_strict and not is_enforced)
        return lambda: ToolCallParser(self.names, is_strict=is_strict, is_whole=is_whole)


def _schema(grammar: Grammar | None) -> dict[str, Any] | None:
    """Of the messages, where a response_format says how they must look."""
    if grammar is None:
        return None
    schema: dict[str, Any] = json.loads(grammar.text or "{}")
    return {"type": "object"} if grammar.kind == "json_object" else schema


def shown_tools(functions: Sequence[Function]) -> dict[str, Any]:
    """The chat template's variable for them."""
    return {"tools": [function.to_template() for function in functions]} if functions else {}
