"""The base class of all bodies, which reads strictly, and the bounds of their numbers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

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
    """Strict JSON: "1" isn't a number, 1 isn't a boolean, NaN and unknown fields are refused.

    The first unknown field is refused, where pydantic's own extra="forbid" would collect them all, however many.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False, json_schema_extra={"additionalProperties": False})
    _names: ClassVar[frozenset[str]]

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        cls._names = frozenset(field.alias or name for name, field in cls.model_fields.items())

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name in data:
                if name not in cls._names:
                    raise PydanticCustomError("unknown_field", "unknown field {name}", {"name": name[:64]})
        return data


class StreamOptions(Body):
    """include_usage: a last chunk with the usage of the whole request."""

    include_usage: bool | None = None
