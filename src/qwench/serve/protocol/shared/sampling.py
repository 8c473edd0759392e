"""The sampling fields that several endpoints share, and their translation to SamplingParams."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from qwench.errors import RequestError
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.serve.protocol.shared.formats import Format, StructuredOutputs
from qwench.serve.protocol.validation.body import (
    INT64,
    LAX,
    MAX_CHOICES,
    MAX_STOP_CHARACTERS,
    MAX_STOPS,
    NUMBER,
    Bias,
    Flag,
    ModelBody,
    StopString,
    TokenId,
    TokenIdText,
    few_entries,
)
from qwench.serve.protocol.validation.other_forms import (
    MAX_TOKENS,
    at_least_tiny,
    bias_of_pairs,
    unless_minus_one,
    without_empty,
)


def _few_characters(stops: list[str]) -> list[str]:
    """Each token of an answer is compared with all of them."""
    if sum(map(len, stops)) > MAX_STOP_CHARACTERS:
        raise PydanticCustomError(
            "too_long", "stop strings have up to {most} characters together", {"most": MAX_STOP_CHARACTERS}
        )
    return stops


StopStrings = Annotated[
    list[StopString], Field(max_length=MAX_STOPS, fail_fast=True), AfterValidator(_few_characters)
]  # fmt: skip
Seed = Annotated[int, LAX, Field(ge=-INT64, lt=INT64)]


class SamplingFields(ModelBody):
    """How to choose tokens and when to stop. What isn't given is as the model's generation_config.json says."""

    frequency_penalty: Annotated[float, LAX, Field(ge=-2, le=2), NUMBER] | None = None
    logit_bias: Annotated[
        dict[TokenIdText, Bias] | None, BeforeValidator(bias_of_pairs), BeforeValidator(few_entries)
    ] = None  # fmt: skip
    n: Annotated[int, LAX, Field(ge=1, le=MAX_CHOICES), NUMBER] | None = None
    presence_penalty: Annotated[float, LAX, Field(ge=-2, le=2), NUMBER] | None = None
    seed: Annotated[Seed | None, BeforeValidator(unless_minus_one)] = None
    stop: Annotated[StopString | StopStrings | None, BeforeValidator(without_empty)] = None
    temperature: Annotated[float, LAX, Field(ge=0, le=2), NUMBER] | None = None
    top_p: Annotated[float, LAX, Field(gt=0, le=1), BeforeValidator(at_least_tiny)] | None = None

    # What vLLM adds.
    ignore_eos: Flag | None = None
    include_stop_str_in_output: Flag | None = None
    min_p: Annotated[float, LAX, Field(ge=0, le=1), NUMBER] | None = None
    min_tokens: Annotated[int, LAX, Field(ge=0, lt=MAX_TOKENS), NUMBER] | None = None
    repetition_penalty: Annotated[float, LAX, Field(gt=0, le=100), NUMBER] | None = None
    skip_special_tokens: Flag | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=1024, fail_fast=True)] | None = None
    top_k: Annotated[int, LAX, Field(ge=-1, lt=MAX_TOKENS), NUMBER] | None = None
    truncate_prompt_tokens: Annotated[int, LAX, Field(ge=-1, lt=MAX_TOKENS), NUMBER] | None = None
    cache_salt: Annotated[str, Field(max_length=256)] | None = None
    structured_outputs: StructuredOutputs | None = None

    # What qwench adds.
    max_thinking_tokens: Annotated[int, LAX, Field(ge=0, lt=MAX_TOKENS), NUMBER] | None = None
    prompt_lookup_num_tokens: Annotated[int, LAX, Field(ge=0, le=64), NUMBER] | None = None

    def formats(self) -> dict[str, Format | None]:
        """The fields that say what form the answer must have."""
        return {"structured_outputs": self.structured_outputs}

    @property
    def format_field(self) -> str | None:
        """Which of them does. Raises RequestError when more than one does."""
        given = [name for name, form in self.formats().items() if form is not None and form.grammar() is not None]
        if len(given) > 1:
            raise RequestError(f"{' and '.join(given)} both say what form the answer must have; give one of them")
        return given[0] if given else None

    def sampling_params(
        self, defaults: SamplingParams, *, max_tokens: int | None, logprobs: int | None
    ) -> SamplingParams:
        """These fields over the model's defaults. Raises RequestError where they contradict each other."""
        given = {name: value for name in _SAMPLING_NAMES if (value := getattr(self, name)) is not None}
        if self.logit_bias:
            given["logit_bias"] = {int(token): bias for token, bias in self.logit_bias.items()}
        given["top_k"] = max(given.get("top_k", defaults.top_k), 0)  # to vLLM -1 is all tokens
        form = None if self.format_field is None else self.formats()[self.format_field]
        grammar = None if form is None else form.grammar()
        return dataclasses.replace(defaults, **given, max_tokens=max_tokens, logprobs=logprobs, grammar=grammar)


_SAMPLING_NAMES = (
    {field.name for field in dataclasses.fields(SamplingParams)} & set(SamplingFields.model_fields)
) - {"logit_bias"}  # fmt: skip
