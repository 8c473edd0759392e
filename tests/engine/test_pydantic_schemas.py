"""Schemas as pydantic writes them: whatever the model writes within one, pydantic reads as that model."""

from __future__ import annotations

import json
from datetime import date
from enum import Enum
from typing import Annotated, Literal

import pytest
from engine_models import grammar_llm

pydantic = pytest.importorskip("pydantic", reason='it comes with pip install "qwench[serve]"')
pytest.importorskip("llguidance", reason='grammars need pip install "qwench[structured]"')

from pydantic import BaseModel, ConfigDict, Field, SecretStr  # noqa: E402

from qwench.runtime.sampling.sampling_params import SamplingParams  # noqa: E402
from qwench.runtime.structured_output.grammar import Grammar  # noqa: E402
from qwench.text.tokenizer import Tokenizer  # noqa: E402

Short = Annotated[str, Field(max_length=3)]


class Color(str, Enum):
    RED = "red"
    BLUE = "blue"


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Cat(Closed):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=1, le=9)]


class Dog(Closed):
    kind: Literal["dog"]
    name: Short | None = None


class Collections(Closed):
    tags: Annotated[set[Color], Field(max_length=3)]
    flags: Annotated[frozenset[bool], Field(min_length=1, max_length=2)]
    pair: tuple[Annotated[int, Field(ge=0, lt=10)], Color]
    by_color: Annotated[dict[Color, bool], Field(max_length=1)]


class Scalars(Closed):
    day: date
    data: Annotated[bytes, Field(max_length=3)]
    secret: Annotated[SecretStr, Field(max_length=3)]


class Unions(Closed):
    pet: Cat | Dog = Field(discriminator="kind")
    either: Cat | Dog
    color: Color = Color.RED
    number: Annotated[int, Field(multiple_of=5, ge=0, le=20)] | None


class Tree(Closed):
    value: Annotated[int, Field(ge=0, lt=3)]
    children: Annotated[list[Tree], Field(max_length=1)] = []


# What is left aside, and what may be wrong for it, or for other reasons: a key that is no color, the 30th of February,
# bytes that are counted as characters.
MODELS: list[tuple[type[BaseModel], set[str], set[str]]] = [
    (Collections, {"uniqueItems", "propertyNames"}, {"enum"}),
    (Scalars, {"format.binary", "format.password"}, {"date_from_datetime_parsing", "bytes_too_long"}),
    (Unions, set(), set()), (Tree, set(), set()),
]  # fmt: skip


@pytest.mark.parametrize(("model", "left_aside", "faults"), MODELS, ids=lambda value: getattr(value, "__name__", ""))
def test_answers_are_what_pydantic_reads(
    tokenizer: Tokenizer, model: type[BaseModel], left_aside: set[str], faults: set[str]
) -> None:
    llm = grammar_llm(tokenizer, num_blocks=256, max_seq_len=512)
    grammar = Grammar("json_schema", json.dumps(model.model_json_schema()))
    assert llm.text_engine.grammars is not None
    assert set(llm.text_engine.grammars.compile(grammar).left_aside) - {"pattern"} == left_aside
    params = SamplingParams(grammar=grammar, n=24, seed=4, max_tokens=400, temperature=1.5)
    finished = [output for output in llm.generate("x", params)[0].outputs if output.finish_reason == "stop"]
    assert len(finished) > 8
    for output in finished:
        assert found_faults(model, output.text) <= faults, output.text


def found_faults(model: type[BaseModel], text: str) -> set[str]:
    """What pydantic has against it."""
    try:
        model.model_validate_json(text)
    except pydantic.ValidationError as error:
        return {fault["type"] for fault in error.errors()}
    return set()
