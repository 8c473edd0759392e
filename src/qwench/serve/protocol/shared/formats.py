"""What form an answer must have, as OpenAI and as vLLM say it; each becomes a Grammar, or none for plain text.

A form that can be none is refused with the body. Whether a schema or a pattern itself is valid is found out later.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from qwench.runtime.structured_output.grammar import Grammar
from qwench.serve.protocol.validation.body import Body, Flag

Name = Annotated[str, Field(min_length=1, max_length=256)]
Schema = dict[str, Any]


class Format(Body, ABC):
    """A form of answers."""

    places = ("format",)
    path = "format."

    @abstractmethod
    def grammar(self) -> Grammar | None:
        """What says the same. Raises GrammarError."""

    @model_validator(mode="after")
    def _can_be(self) -> Format:
        self.grammar()
        return self


class TextFormat(Format):
    """Plain text."""

    type: Literal["text"]

    def grammar(self) -> Grammar | None:
        return None


class JsonObjectFormat(Format):
    """Any JSON object."""

    type: Literal["json_object"]

    def grammar(self) -> Grammar | None:
        return Grammar("json_object")


class NamedSchema(Body):
    """name and description are of no consequence. strict: a schema that asks for more than a grammar can hold is
    refused; else an answer obeys what it can hold."""

    places = ("format",)
    path = "format."
    name: Name = "answer"
    json_schema: Annotated[Schema, Field(alias="schema")]
    description: str | None = None
    strict: Flag | None = None


class JsonSchemaFormat(Format):
    """JSON that a schema describes, as response_format has it."""

    type: Literal["json_schema"]
    json_schema: NamedSchema

    def grammar(self) -> Grammar | None:
        return schema_grammar(self.json_schema.json_schema, is_strict=bool(self.json_schema.strict))


class FlatSchemaFormat(Format, NamedSchema):
    """The same as /v1/responses has it."""

    type: Literal["json_schema"]

    def grammar(self) -> Grammar | None:
        return schema_grammar(self.json_schema, is_strict=bool(self.strict))


class StructuredOutputs(Format):
    """The form of an answer as vLLM names it: one of these. grammar: Lark's."""

    json_schema: Annotated[Schema | str | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=4096, fail_fast=True)] | None = None
    lark: Annotated[str | None, Field(alias="grammar")] = None
    json_object: Flag | None = None

    def grammar(self) -> Grammar | None:
        wanted = []
        if self.json_schema is not None:
            wanted.append(schema_grammar(self.json_schema))
        if self.regex is not None:
            wanted.append(Grammar("regex", self.regex))
        if self.choice is not None:
            wanted.append(Grammar.choice(self.choice))
        if self.lark is not None:
            wanted.append(Grammar("lark", self.lark))
        if self.json_object:
            wanted.append(Grammar("json_object"))
        if len(wanted) != 1:
            raise ValueError("give one of json, regex, choice, grammar and json_object")
        return wanted[0]


def _flat(value: Any) -> Any:
    """A format as /v1/responses has it, of any way to write one that servers take: a word, a schema alone, a schema
    beside json_object, one within json_schema, and none, which is any object."""
    if isinstance(value, str):
        return {"type": "json_object" if value == "json" else value}
    if not isinstance(value, dict):
        return value
    kind, nested = value.get("type"), value.get("json_schema")
    if isinstance(nested, dict):
        return {"type": "json_schema", **nested} if nested.get("schema") is not None else {"type": "json_object"}
    schema = value.get("schema", value.get("value"))
    if isinstance(schema, dict) and kind in (None, "json", "json_object", "json_schema"):
        return {"type": "json_schema", **{name: value[name] for name in value if name not in ("type", "value")},
                "schema": schema}  # fmt: skip
    if kind == "object" or (kind is None and ("properties" in value or "$ref" in value)):
        return {"type": "json_schema", "schema": value}
    return {"type": "json_object"} if kind == "json" or (kind == "json_schema" and "name" in value) else value


def without_texts(data: Any) -> Any:
    """A request whose response_format is a regular expression or a grammar, with structured_outputs in place of it:
    TGI, Together and Fireworks have these there."""
    form = data.get("response_format") if isinstance(data, dict) else None
    if not isinstance(form, dict):
        return data
    kind = form.get("type")
    if kind not in ("regex", "grammar") or data.get("structured_outputs") is not None:
        return data
    text = next((form[name] for name in (kind, "pattern", "value") if name in form), None)
    rest = {name: value for name, value in data.items() if name != "response_format"}
    return {**rest, "structured_outputs": {kind: text}}


def _nested(value: Any) -> Any:
    """The same as response_format has it."""
    value = _flat(value)
    if isinstance(value, dict) and value.get("type") == "json_schema" and "schema" in value:
        return {"type": "json_schema", "json_schema": {name: value[name] for name in value if name != "type"}}
    return value


ChatFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type"), BeforeValidator(_nested)
]
ResponsesFormat = Annotated[
    TextFormat | JsonObjectFormat | FlatSchemaFormat, Field(discriminator="type"), BeforeValidator(_flat)
]


def schema_grammar(schema: Schema | str, *, is_strict: bool = False) -> Grammar:
    """Raises GrammarError."""
    text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
    return Grammar("json_schema", text, is_strict=is_strict)
