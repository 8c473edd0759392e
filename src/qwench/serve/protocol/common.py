"""Fields that several endpoints share, and what becomes of them: SamplingParams."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from qwench.runtime.request import SamplingParams

INT64 = 1 << 63
MAX_TOKENS = 1 << 31
MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
MAX_STOPS, MAX_STOP_LENGTH = 16, 256

TokenId = Annotated[int, Field(ge=0, lt=INT64)]
Count = Annotated[int, Field(ge=1, lt=MAX_TOKENS)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
TokenIdText = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]


MAX_ENTRIES = 1024


def few_entries(value: Any) -> Any:
    """Before any of them is looked at."""
    if isinstance(value, dict) and len(value) > MAX_ENTRIES:
        raise ValueError(f"it has {len(value)} entries; no more than {MAX_ENTRIES} are allowed")
    return value


class Body(BaseModel):
    """JSON that means what it says: "1" is no number, 1 no truth, NaN nothing at all, and an unknown field a mistake.

    The first unknown field is refused, where pydantic's own extra="forbid" would collect them all, however many.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False, json_schema_extra={"additionalProperties": False})

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name in data:
                if name not in cls.model_fields:
                    raise PydanticCustomError("unknown_field", "unknown field {name}", {"name": name[:64]})
        return data


class StreamOptions(Body):
    """include_usage: a last chunk with the usage of the whole request."""

    include_usage: bool | None = None


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

    # What qwench adds.
    prompt_lookup_num_tokens: Annotated[int, Field(ge=0, le=64)] | None = None

    # Taken, and of no consequence here.
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    user: str | None = None

    def sampling_params(
        self, defaults: SamplingParams, *, max_tokens: int | None, logprobs: int | None
    ) -> SamplingParams:
        """These fields over the model's defaults. Raises RequestError where they contradict each other."""
        given = {name: value for name in _SAMPLING_NAMES if (value := getattr(self, name)) is not None}
        if self.logit_bias:
            given["logit_bias"] = {int(token): bias for token, bias in self.logit_bias.items()}
        given["top_k"] = max(given.get("top_k", defaults.top_k), 0)  # to vLLM -1 is all tokens
        return dataclasses.replace(defaults, **given, max_tokens=max_tokens, logprobs=logprobs)


_SAMPLING_NAMES = (
    {field.name for field in dataclasses.fields(SamplingParams)} & set(SamplingFields.model_fields)
) - {"logit_bias"}  # fmt: skip
