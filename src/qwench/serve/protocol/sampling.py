"""The sampling fields that several endpoints share, and their translation to SamplingParams."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from qwench.errors import RequestError
from qwench.runtime.sampling_params import SamplingParams
from qwench.serve.protocol.common import (
    INT64,
    MAX_CHOICES,
    MAX_STOPS,
    MAX_TOKENS,
    Bias,
    Body,
    StopString,
    TokenId,
    TokenIdText,
    few_entries,
)
from qwench.serve.protocol.formats import Format, StructuredOutputs


class SamplingFields(Body):
    """How to choose tokens and when to stop. What isn't given is as the model's generation_config.json says."""

    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[TokenIdText, Bias], BeforeValidator(few_entries)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None

    # What vLLM adds.
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=MAX_TOKENS)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    skip_special_tokens: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=1024, fail_fast=True)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=MAX_TOKENS)] | None = None
    cache_salt: Annotated[str, Field(max_length=256)] | None = None
    structured_outputs: StructuredOutputs | None = None

    # What qwench adds.
    prompt_lookup_num_tokens: Annotated[int, Field(ge=0, le=64)] | None = None

    # Taken, and of no consequence here.
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    user: str | None = None

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
