"""The bodies of Ollama's routes, as its documentation defines them.

Fields of `options` count as the request's own, see field_table.py. Streams are the default there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from qwench.serve.protocol.openai.chat import Turns
from qwench.serve.protocol.openai.embeddings import MAX_INPUTS
from qwench.serve.protocol.shared.formats import Format, JsonObjectFormat, JsonSchemaFormat
from qwench.serve.protocol.shared.sampling import SamplingFields
from qwench.serve.protocol.shared.template import Effort, TemplateVariables
from qwench.serve.protocol.shared.tools import ChatTools
from qwench.serve.protocol.validation.body import LAX, NUMBER, Count, Flag, ModelBody, TokenId, TopLogprobs
from qwench.serve.protocol.validation.other_forms import no_flag


def _nested(form: Any) -> Any:
    """The word json, or a schema, as chats have it."""
    if form == "":
        return None
    if form == "json":
        return {"type": "json_object"}
    if isinstance(form, dict):
        return {"type": "json_schema", "json_schema": {"schema": form}}
    raise PydanticCustomError("form", "it must be json or a JSON schema")


def unless_positive(value: Any) -> Any:
    """-1 and -2: as many as there is room for."""
    return None if isinstance(no_flag(value), int) and value <= 0 else value


AnswerForm = Annotated[
    Annotated[JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None,
    BeforeValidator(_nested, json_schema_input_type=Literal["", "json"] | dict[str, Any] | None),
]


class NamedModel(ModelBody):
    """A model by its name. verbose, insecure, stream: of no consequence but for the form of the answer."""

    places = ("request", "ollama model")
    stream: Flag | None = None


class OllamaAnswerRequest(SamplingFields):
    """think: whether to, or how much. truncate: false refuses what is longer than the context."""

    n: Annotated[Literal[1] | None, BeforeValidator(no_flag)] = None
    chat_template_kwargs: TemplateVariables | None = None
    format: AnswerForm = None
    logprobs: Flag | None = None
    num_predict: Annotated[
        Annotated[int, LAX, Field(ge=1), NUMBER] | None, BeforeValidator(unless_positive)
    ] = None  # fmt: skip
    stream: Flag | None = None
    think: Flag | Effort | None = None
    top_logprobs: TopLogprobs | None = None
    truncate: Flag | None = None

    @property
    def is_stream(self) -> bool:
        return self.stream is not False

    @property
    def effort(self) -> str | None:
        return self.think if isinstance(self.think, str) else None

    @property
    def is_thinking(self) -> bool | None:
        return self.think != "none" if isinstance(self.think, str) else self.think

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def is_empty(self) -> bool:
        """Whether the request only wants the model to be there, or to be gone."""
        raise NotImplementedError

    @property
    def lets_go(self) -> bool:
        """Whether it wants it to be gone, and nothing else."""
        return self.is_empty and self.keep_alive == 0

    def formats(self) -> dict[str, Format | None]:
        return {**super().formats(), "format": self.format}


class OllamaChatRequest(OllamaAnswerRequest):
    """A conversation to go on with; without any message the model is only loaded."""

    places = ("request", "answers", "conversation", "ollama", "ollama chat")
    messages: Turns | None = None
    tools: ChatTools | None = None

    @property
    def is_empty(self) -> bool:
        return not self.messages


class OllamaGenerateRequest(OllamaAnswerRequest):
    """A prompt that goes through the chat template, unless it is raw, has a suffix, or there's none: then the model is
    only loaded. context: what the answer before gave, to go on with."""

    places = ("request", "answers", "conversation", "ollama", "ollama generate")
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    context: Annotated[list[TokenId], Field(max_length=1 << 20, fail_fast=True)] | None = None
    raw: Flag | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.prompt or self.suffix or self.context)

    @model_validator(mode="after")
    def _raw_is_all(self) -> OllamaGenerateRequest:
        if self.raw and (self.system or self.context):
            raise PydanticCustomError("raw", "a raw prompt is all that is read; system and context can't go with it")
        return self


class OllamaEmbedRequest(ModelBody):
    """truncate: false refuses an input that is longer than the context."""

    places = ("request", "ollama embed")
    input: str | Annotated[list[str], Field(max_length=MAX_INPUTS, fail_fast=True)]
    dimensions: Count | None = None
    truncate: Flag | None = None


class OllamaEmbeddingsRequest(ModelBody):
    """One text, as it was before /api/embed."""

    places = ("request", "ollama embed")
    prompt: str = ""
