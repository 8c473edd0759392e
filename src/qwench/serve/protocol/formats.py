"""What form an answer must have, as OpenAI and as vLLM say it; each becomes a Grammar, or none for plain text.

A form that can be none is refused with the body. Whether a schema or a pattern itself is valid is found out later.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from qwench.runtime.grammar import Grammar
from qwench.serve.protocol.common import Body

Name = Annotated[str, Field(min_length=1, max_length=256)]
Schema = dict[str, Any]


class Format(Body, ABC):
    """A form of answers."""

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
    """name, description and strict are taken and of no consequence: every answer obeys its schema."""

    name: Name
    json_schema: Annotated[Schema, Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Format):
    """JSON that a schema describes, as response_format has it."""

    type: Literal["json_schema"]
    json_schema: NamedSchema

    def grammar(self) -> Grammar | None:
        return schema_grammar(self.json_schema.json_schema)


class FlatSchemaFormat(Format, NamedSchema):
    """The same as /v1/responses has it."""

    type: Literal["json_schema"]

    def grammar(self) -> Grammar | None:
        return schema_grammar(self.json_schema)


class StructuredOutputs(Format):
    """The form of an answer as vLLM names it: one of these. grammar: Lark's."""

    json_schema: Annotated[Schema | str | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=4096, fail_fast=True)] | None = None
    lark: Annotated[str | None, Field(alias="grammar")] = None
    json_object: bool | None = None

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


ChatFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
ResponsesFormat = Annotated[TextFormat | JsonObjectFormat | FlatSchemaFormat, Field(discriminator="type")]


def schema_grammar(schema: Schema | str) -> Grammar:
    """Raises GrammarError."""
    return Grammar("json_schema", schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False))
