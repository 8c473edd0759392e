"""The base class of all bodies, which reads them by field_table.py, and the bounds of their numbers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from qwench.serve.protocol.validation.field_table import Rule, rules_of
from qwench.serve.protocol.validation.other_forms import MAX_TOKENS, no_flag, seconds_of_keep_alive, unless_minus_one
from qwench.serve.protocol.validation.reading import with_known_fields

INT64 = 1 << 63
MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
MAX_STOPS, MAX_STOP_LENGTH, MAX_STOP_CHARACTERS = 256, 256, 4096

# Numbers may be texts ("0.7"), whole ones end in .0, flags be 0 and 1: forms and other languages write them so.
LAX, NUMBER = Field(strict=False), BeforeValidator(no_flag)
Flag = Annotated[bool, LAX]

TokenId = Annotated[int, Field(ge=0, lt=INT64)]
Count = Annotated[int, LAX, Field(ge=1, lt=MAX_TOKENS), NUMBER]
Limit = Annotated[Count | None, BeforeValidator(unless_minus_one)]
TopLogprobs = Annotated[int, LAX, Field(ge=0, le=MAX_TOP_LOGPROBS), NUMBER]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
TokenIdText = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]
Bias = Annotated[float, LAX, Field(ge=-100, le=100), NUMBER]

MAX_ENTRIES = 1024


def few_entries(value: Any) -> Any:
    """Before any of them is looked at."""
    if isinstance(value, (dict, list)) and len(value) > MAX_ENTRIES:
        raise ValueError(f"it has {len(value)} entries; no more than {MAX_ENTRIES} are allowed")
    return value


class Body(BaseModel):
    """JSON as a client sends it: what is no field of the class goes by field_table.py, NaN is refused.

    places: of that table, whose rows are for such objects; the first is how their fields are named, as in messages[].x.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    places: ClassVar[tuple[str, ...]] = ()
    path: ClassVar[str] = ""
    _names: ClassVar[frozenset[str]]
    _rules: ClassVar[dict[str, Rule]]

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        cls._names = frozenset(field.alias or name for name, field in cls.model_fields.items())
        cls._rules = rules_of(cls.places)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        data = cls.plain_form(data)
        if isinstance(data, dict) and not data.keys() <= cls._names:
            return with_known_fields(data, cls._names, cls._rules, cls.path)
        return data

    @classmethod
    def plain_form(cls, data: Any) -> Any:
        """Other ways to write such an object, as the one that the class reads."""
        return data


class ModelBody(Body):
    """Of a request to a model. keep_alive: seconds for which it stays loaded afterwards, or a text such as "10m"; -1 is
    for ever. Of consequence where models come and go."""

    model: str | None = None
    keep_alive: Annotated[float | None, BeforeValidator(seconds_of_keep_alive)] = None


class StreamOptions(Body):
    """include_usage: a last chunk with the usage of the whole request. continuous_usage_stats: that so far in each
    chunk, as vLLM has it."""

    places = ("stream_options",)
    path = "stream_options."
    include_usage: Flag | None = None
    continuous_usage_stats: Flag | None = None
