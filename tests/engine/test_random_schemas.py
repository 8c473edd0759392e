"""Whatever the schema, the logits and the seed: an answer that ends is a document that jsonschema finds valid."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from engine_models import grammar_llm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwench.llm import LLM
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.runtime.structured_output.grammar import Grammar
from qwench.text.tokenizer import Tokenizer

jsonschema = pytest.importorskip("jsonschema", reason="what is valid is said by jsonschema")
pytest.importorskip("llguidance", reason='grammars need pip install "qwench[structured]"')

MAX_TOKENS = 400
NAMES = st.sampled_from(["a", "name", "größe", 'quo"te', "line\nbreak", ""])
VALUES = st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=4) | st.just([1, {"a": None}])
# RFC 3339 as a grammar can know it: not which year is a leap year
FORMATS = jsonschema.FormatChecker(["uuid", "ipv4"])
for name, pattern in {"date": r"\d{4}-\d\d-\d\d", "time": r"\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)"}.items():
    FORMATS.checks(name)(re.compile(pattern, re.ASCII).fullmatch)
PATTERNS = st.sampled_from(["^[a-z]{2,4}$", "^(yes|no)$", r"^\d{3}-\d{2}$", "^x"])


def integers() -> st.SearchStrategy[dict[str, Any]]:
    bounds = st.tuples(st.integers(-1000, 1000), st.integers(0, 200))
    return bounds.map(lambda b: {"type": "integer", "minimum": b[0], "maximum": b[0] + b[1]})


def numbers() -> st.SearchStrategy[dict[str, Any]]:
    return st.integers(-50, 50).map(lambda low: {"type": "number", "exclusiveMinimum": low, "maximum": low + 1.5})


def texts() -> st.SearchStrategy[dict[str, Any]]:
    lengths = st.tuples(st.integers(0, 3), st.integers(0, 4))
    plain = lengths.map(lambda n: {"type": "string", "minLength": n[0], "maxLength": n[0] + n[1]})
    formats = st.sampled_from(["date", "time", "uuid", "ipv4"]).map(lambda name: {"type": "string", "format": name})
    return plain | formats | PATTERNS.map(lambda p: {"type": "string", "pattern": p, "maxLength": 8})


def arrays(items: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    plain = st.tuples(items, st.integers(0, 2), st.integers(0, 2)).map(
        lambda a: {"type": "array", "items": a[0], "minItems": a[1], "maxItems": a[1] + a[2]}
    )
    fixed = st.lists(items, min_size=1, max_size=3).map(
        lambda each: {"type": "array", "prefixItems": each, "items": False, "minItems": len(each)}
    )
    return plain | fixed


@st.composite
def objects(draw: Any, values: st.SearchStrategy[Any]) -> dict[str, Any]:
    properties = draw(st.dictionaries(NAMES, values, max_size=3))
    required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if len(required) == len(properties) and draw(st.booleans()):  # where some are optional it is refused
        schema = {**schema, "minProperties": len(required), "maxProperties": len(properties)}
    return schema


leaves = (
    st.just({"type": "null"}) | st.just({"type": "boolean"}) | integers() | numbers() | texts()
    | st.lists(VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values})
    | VALUES.map(lambda value: {"const": value}) | st.just({"$ref": "#/$defs/shared"})
    | st.just({"type": ["integer", "null"], "minimum": 0, "maximum": 9})
)  # fmt: skip
schemas = st.recursive(
    leaves,
    lambda inner: arrays(inner) | objects(inner) | st.lists(inner, min_size=1, max_size=3).map(lambda s: {"anyOf": s}),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def llm(tokenizer: Tokenizer) -> LLM:
    return grammar_llm(tokenizer, num_blocks=128, max_seq_len=512)


@given(schema=schemas, shared=leaves.filter(lambda s: "$ref" not in s), seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_ends_is_valid(llm: LLM, schema: Any, shared: Any, seed: int) -> None:
    whole = {**schema, "$defs": {"shared": shared}}
    grammar = Grammar("json_schema", json.dumps(whole, ensure_ascii=bool(seed % 2)))
    params = SamplingParams(max_tokens=MAX_TOKENS, temperature=1.5, seed=seed, grammar=grammar, n=3)
    for out in llm.generate(f"{seed}", params)[0].outputs:
        if out.finish_reason == "length":
            assert len(out.token_ids) == MAX_TOKENS
            continue
        assert out.finish_reason == "stop"
        jsonschema.Draft202012Validator(whole, format_checker=FORMATS).validate(json.loads(out.text))


@given(
    pattern=st.recursive(
        st.sampled_from(["a", "b", "[0-9]", "[^a]", "ä", r"\n", "[a-c]{2}", r"\.", "true"]),
        lambda inner: (
            st.tuples(inner, inner).map("".join)
            | st.tuples(inner, inner).map(lambda p: f"({p[0]}|{p[1]})")
            | st.tuples(inner, st.sampled_from(["?", "{1,3}", "{2}", "+", "*"])).map(lambda p: f"({p[0]}){p[1]}")
        ),
        max_leaves=6,
    ),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_ends_matches(llm: LLM, pattern: str, seed: int) -> None:
    """Patterns that mean the same in Rust and in Python."""
    params = SamplingParams(max_tokens=60, temperature=1.5, seed=seed, grammar=Grammar("regex", pattern), n=3)
    for out in llm.generate(f"{seed}", params)[0].outputs:
        if out.finish_reason == "stop":
            assert re.fullmatch(pattern, out.text), (pattern, out.text)
