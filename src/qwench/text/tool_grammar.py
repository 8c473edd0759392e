"""The Grammar of answers with tool calls: each call names a tool and has arguments that its schema allows.

Calls look as Qwen2.5's chat template renders them, blanks included, so that in the next turn the rendered answer has
the same tokens, and hits the prefix cache. Called by the server; from Python:

    tools = [{"type": "function", "function": {"name": ..., "parameters": ...}}]
    grammar = call_grammar(tools, tag_kind(llm.tokenizer))
    llm.chat(messages, SamplingParams(grammar=grammar), tools=tools)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qwench.errors import GrammarError
from qwench.runtime.structured_output.grammar import Grammar
from qwench.runtime.structured_output.json_schema import changed, holdable
from qwench.runtime.structured_output.matcher import WHITESPACE
from qwench.text.tool_calls import CLOSE, OPEN, TagKind

_COMBINING = {"allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas"}  # they may name further properties
_NOTES = {"title", "description", "default", "examples", "$comment"}
LAYOUT = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}


def call_grammar(
    tools: Sequence[Mapping[str, Any]], tags: TagKind, *, is_required: bool = True, is_single: bool = False,
    answer_schema: Mapping[str, Any] | None = None, is_answer_strict: bool = False,
) -> Grammar:  # fmt: skip
    """For an answer that may call `tools`. is_required: it does, and consists of calls; else there may be text around
    them, or, with an answer_schema, JSON that this describes in place of them, in full if is_answer_strict. is_single:
    there is one call at most, and the answer ends with it.

    Schemas of functions with `strict` are followed in full; of others as far as a grammar can hold them.
    Raises GrammarError for tools that aren't what they should be.
    """
    left_aside: list[str] = []
    begin, end = (OPEN, CLOSE) if tags != "text" else (_literal(OPEN), _literal(CLOSE))
    calls = "call" if is_single else r'call ("\n" call)*'
    if is_required:
        rules = [f"start: {calls}"]
    elif answer_schema is not None:
        answer = _answer(answer_schema, is_answer_strict, left_aside)
        rules = [f"start: {calls} | answer", f"answer: %json {_schema(answer)}"]
    else:
        rules = _among_text(tags, is_single, end)
    rules.append(rf'call: {begin} "\n" function "\n" {end}')
    rules.append("function: " + " | ".join(f"function_{i}" for i in range(len(tools))))
    for i, tool in enumerate(tools):
        rules += _function(i, tool, left_aside)
    return Grammar("lark", "\n".join(rules), left_aside=left_aside)


def _among_text(tags: TagKind, is_single: bool, end: str) -> list[str]:
    """Calls with any text around them. Where the tags are plain text, a text and the opening tag after it are one
    lexeme, since nothing else marks the end of the text."""
    text = f"TEXT: /(?s:.+)/ & ~/(?s:.*){OPEN}(?s:.*)/"
    if tags != "text":
        return ["start: TEXT? call?" if is_single else "start: (TEXT? call)* TEXT?", text]
    head, called = f"head[lazy]: /(?s:.*){OPEN}/", rf'called: head "\n" function "\n" {end}'
    return ["start: called | TEXT?" if is_single else "start: called* TEXT?", text, head, called]


def _answer(schema: Mapping[str, Any], is_strict: bool, left_aside: list[str]) -> dict[str, Any]:
    """With the white space that a grammar of kind json_schema allows."""
    if not is_strict:
        schema, names = holdable(schema)
        left_aside += names
    return {**schema, "x-guidance": {"whitespace_pattern": WHITESPACE, "lenient": not is_strict}}


def _function(index: int, tool: Mapping[str, Any], left_aside: list[str]) -> list[str]:
    """Its rules. left_aside: gets what its schema asks for beyond what a grammar can hold."""
    try:
        function = tool["function"]
        name, parameters, strict = function["name"], function.get("parameters"), function.get("strict")
    except (TypeError, KeyError, AttributeError):
        raise GrammarError(f"a tool is {tool!r}; it must have a function with a name") from None
    if not isinstance(name, str) or not isinstance(parameters, Mapping | None):
        raise GrammarError(f"the function {name!r} must have a string for its name and an object for its parameters")
    if not strict:
        parameters, names = holdable(parameters)
        left_aside += names
    schema = {"type": "object", **_closed(_bare(parameters)), "x-guidance": {**LAYOUT, "lenient": not strict}}
    head = _literal(f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": ')
    return [f'function_{index}: {head} arguments_{index} "}}"', f"arguments_{index}: %json {_schema(schema)}"]


def _closed(parameters: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Closes a schema: unless it says otherwise no arguments but those it names are allowed. JSON Schema would allow
    any, but a function has no use for them."""
    if parameters is None:
        return {"additionalProperties": False}
    properties, required = parameters.get("properties"), parameters.get("required", ())
    if not isinstance(properties, Mapping) or _COMBINING & set(parameters):
        return parameters
    if not isinstance(required, Sequence) or not set(map(str, required)) <= set(properties):
        return parameters
    return {"additionalProperties": False, **parameters}


def _bare(schema: Any) -> Any:
    """A schema without titles, descriptions and the like, often half of it: the size of grammars is limited."""
    return changed(schema, lambda part: {name: value for name, value in part.items() if name not in _NOTES})


def _schema(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def _literal(text: str) -> str:
    """As Lark writes it; its escapes are JSON's."""
    return json.dumps(text, ensure_ascii=False)
