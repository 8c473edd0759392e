"""Answers within a grammar: every finished one is in its language, whatever the logits, and nothing else changes."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from typing import Any

import numpy as np
import pytest
from engine_models import GRAMMAR_VOCAB_SIZE, grammar_llm, history_logits, with_draft

from qwench.errors import ConfigError, GrammarError, RequestError
from qwench.llm import LLM
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.runtime.structured_output.grammar import Grammar
from qwench.text.generation import CompletionOutput
from qwench.text.tokenizer import Tokenizer

jsonschema = pytest.importorskip("jsonschema", reason="what is valid is said by jsonschema")
pytest.importorskip("llguidance", reason='grammars need pip install "qwench[structured]"')

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}  # fmt: skip
SCHEMA = Grammar("json_schema", json.dumps(PERSON))
ANYTHING = Grammar("regex", r"(.|\n)*")


@pytest.fixture(scope="module")
def llm(tokenizer: Tokenizer) -> LLM:
    return grammar_llm(tokenizer)


def params(grammar: Grammar | None = SCHEMA, **fields: Any) -> SamplingParams:
    return SamplingParams(**({"max_tokens": 120, "temperature": 1.5, "seed": 1, "grammar": grammar} | fields))


def answer(llm: LLM, wanted: SamplingParams, prompt: str = "x") -> CompletionOutput:
    return llm.generate(prompt, wanted)[0].outputs[0]


def is_person(text: str) -> bool:
    jsonschema.validate(json.loads(text), PERSON)
    return True


# --- every finished answer is in the language ---------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_documents_of_a_schema(llm: LLM, temperature: float) -> None:
    outputs = llm.generate([f"{i}" for i in range(20)], params(temperature=temperature))
    finished = [o.outputs[0].text for o in outputs if o.outputs[0].finish_reason == "stop"]
    assert len(finished) > 10
    assert all(is_person(text) for text in finished)


PATTERNS = [
    "[a-z]{3}", "(yes|no)", r"[0-9]{1,3}(\.[0-9]{2})?", "a*b+", r"\{\"name\": \"[a-z]{1,5}\"\}", "[äöü]{2}[^a]",
    "(ab|a)(bc|c)?", r"[\x20-\x7e]{4,6}",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_texts_of_a_regular_expression(llm: LLM, pattern: str) -> None:
    outputs = llm.generate([f"{i}" for i in range(10)], params(Grammar("regex", pattern), max_tokens=60))
    finished = [o.outputs[0].text for o in outputs if o.outputs[0].finish_reason == "stop"]
    assert len(finished) > 5
    assert all(re.fullmatch(pattern, text) for text in finished), finished


def test_texts_of_a_grammar(llm: LLM) -> None:
    """Balanced brackets, which no regular expression could ask for."""
    grammar = Grammar("lark", 'start: pair\npair: "(" (pair | DIGIT)? ")"\nDIGIT: /[0-9]/')
    for seed in range(10):
        out = answer(llm, params(grammar, seed=seed))
        if out.finish_reason == "stop":
            depth = out.text.count("(")
            assert re.fullmatch(rf"\({{{depth}}}[0-9]?\){{{depth}}}", out.text)


def test_one_of_some_choices(llm: LLM) -> None:
    choices = ["yes", "no", 'quo"te\n', "größer"]
    texts = {answer(llm, params(Grammar.choice(choices)), f"{i}").text for i in range(40)}
    assert texts == set(choices)


def test_any_object(llm: LLM) -> None:
    outs = [answer(llm, params(Grammar("json_object"), max_tokens=200), f"{i}") for i in range(12)]
    objects = [json.loads(out.text) for out in outs if out.finish_reason == "stop"]
    assert objects and all(isinstance(each, dict) for each in objects)


# --- ends ---------------------------------------------------------------------------------------------------------


def test_it_ends_where_nothing_can_follow(llm: LLM, tokenizer: Tokenizer) -> None:
    """Without an end token, and even before min_tokens."""
    for fields in ({}, {"min_tokens": 50}, {"ignore_eos": True}):
        out = answer(llm, params(Grammar("regex", "[a-z]{3}"), **fields))
        assert (len(out.text), out.finish_reason, out.stop_reason) == (3, "stop", None)
        assert tokenizer.decode(out.token_ids, skip_special_tokens=False) == out.text


def test_nothing_may_come_at_all(llm: LLM) -> None:
    out = answer(llm, params(Grammar("regex", "()"), min_tokens=5))
    assert (out.text, out.token_ids, out.finish_reason) == ("", [], "stop")


def test_end_tokens_come_only_where_the_grammar_ends(llm: LLM, tokenizer: Tokenizer) -> None:
    """However likely they are; a token of stop_token_ids is one too."""
    eos, other = tokenizer.eos_token_id, tokenizer.token_id("<|im_start|>")
    digits = Grammar("regex", "[0-9]{4,}")
    out = answer(llm, params(digits, logit_bias={eos: 90.0}))
    assert (len(out.text), out.finish_reason, out.token_ids[-1]) == (4, "stop", eos)
    out = answer(llm, params(digits, logit_bias={other: 90.0}, stop_token_ids=[other]))
    assert (len(out.text), out.finish_reason, out.stop_reason) == (4, "stop", other)
    out = answer(llm, params(digits, logit_bias={eos: 90.0}, min_tokens=9, temperature=0.0))
    assert len(out.token_ids) == 10
    out = answer(llm, params(digits, logit_bias={eos: 90.0}, ignore_eos=True, max_tokens=30))
    assert out.finish_reason == "length" and re.fullmatch("[0-9]{30,}", out.text)


def test_a_cut_is_a_length(llm: LLM) -> None:
    out = answer(llm, params(max_tokens=5))
    assert (len(out.token_ids), out.finish_reason) == (5, "length")


def test_stop_strings_cut_too(llm: LLM) -> None:
    out = answer(llm, params(Grammar("regex", "[0-9]{6}"), stop=[str(i) for i in range(10)]))
    assert (out.text, out.finish_reason) == ("", "stop")


def test_tokens_left_by_the_grammar_but_taken_by_the_request(llm: LLM, tokenizer: Tokenizer) -> None:
    taken = [tokenizer.token_id("a")]
    with pytest.raises(GrammarError, match="leaves no token"):
        llm.generate("x", params(Grammar("regex", "a[bc]"), stop_token_ids=taken))


def test_named_tokens_come_only_where_they_are_named(llm: LLM, tokenizer: Tokenizer) -> None:
    named, plain = tokenizer.token_id("<tool_call>"), Grammar("regex", "<tool_call>[0-9]")
    out = answer(llm, params(plain, logit_bias={named: 90.0}))
    assert named not in out.token_ids and re.fullmatch("<tool_call>[0-9]", out.text)
    out = answer(llm, params(Grammar("lark", 'start: <tool_call> "\\n" /[0-9]/')))
    assert out.token_ids[0] == named and re.fullmatch(r"<tool_call>\n[0-9]", out.text)


# --- and nothing else changes -------------------------------------------------------------------------------------

FIELDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.01, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"temperature": 1.5, "n": 3, "logprobs": 2, "min_tokens": 8, "logit_bias": {40: 5.0, 41: -5.0}},
]


@pytest.mark.parametrize("fields", FIELDS)
def test_a_grammar_of_everything_changes_nothing(llm: LLM, tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    """As long as the text is text: bytes that are no UTF-8 are in no regular expression's language."""
    bias = {token: 60.0 for token in range(256) if 0x20 <= tokenizer.token_bytes(token)[0] < 0x7F}
    fields = {**fields, "logit_bias": bias | dict(fields.get("logit_bias", {})), "max_tokens": 40}
    with_it, without = (llm.generate("x", params(grammar, **fields))[0].outputs for grammar in (ANYTHING, None))
    strip = [dataclasses.replace(out, timings=None) for out in with_it]
    assert strip == [dataclasses.replace(out, timings=None) for out in without]


def test_log_probabilities_are_the_models(llm: LLM, tokenizer: Tokenizer) -> None:
    prompt, out = tokenizer.encode("x"), answer(llm, params(logprobs=2, max_tokens=30))
    assert out.logprobs is not None
    for i, (token, entry) in enumerate(zip(out.token_ids, out.logprobs)):
        row = history_logits(np.array([*prompt, *out.token_ids[:i]], np.int32), GRAMMAR_VOCAB_SIZE).astype(np.float64)
        expected = row - np.log(np.exp(row).sum())
        assert entry.logprob == pytest.approx(expected[token], abs=1e-4)
        assert [token for token, _ in entry.top] == np.argsort(-expected)[:2].tolist()


@pytest.mark.parametrize("fields", FIELDS)
def test_prompt_lookup_changes_nothing(llm: LLM, fields: dict[str, Any]) -> None:
    prompt = '{"name": "red", "age": 12, "tags": ["red", "red"]}' * 2
    plain = llm.generate(prompt, params(**fields))[0].outputs
    before = llm.metrics.drafted_tokens
    guessed = llm.generate(prompt, params(**fields, prompt_lookup_num_tokens=8))[0].outputs
    assert llm.metrics.drafted_tokens > before
    assert [out.token_ids for out in guessed] == [out.token_ids for out in plain]
    assert [out.logprobs for out in guessed] == [out.logprobs for out in plain]


@pytest.mark.parametrize("grammar", ["schema", None])
@pytest.mark.parametrize("fields", FIELDS)
def test_a_draft_changes_nothing(llm: LLM, tokenizer: Tokenizer, fields: dict[str, Any], grammar: str | None) -> None:
    """Guesses that the grammar refuses are wrong, like others."""
    asked, drafting = params(SCHEMA if grammar else None, **fields), grammar_llm(tokenizer)
    with_draft(drafting.engine, history_logits)
    plain, guessed = (each.generate("prompt", asked)[0].outputs for each in (llm, drafting))
    assert drafting.metrics.accepted_tokens > 0 or fields.get("n") or grammar
    assert [(out.token_ids, out.logprobs, out.text) for out in guessed] == [
        (out.token_ids, out.logprobs, out.text) for out in plain
    ]


@pytest.mark.parametrize("lookup", [0, 8])
def test_company_and_preemption_change_nothing(tokenizer: Tokenizer, lookup: int) -> None:
    wanted = [params(grammar, seed=i, **fields) for i, (grammar, fields) in enumerate(
        (grammar, fields) for grammar in (SCHEMA, ANYTHING, None) for fields in FIELDS
    )]  # fmt: skip
    wanted = [dataclasses.replace(each, prompt_lookup_num_tokens=lookup) for each in wanted]
    alone = grammar_llm(tokenizer)
    expected = [[out.token_ids for out in alone.generate("prompt", each)[0].outputs] for each in wanted]
    crowded = grammar_llm(tokenizer, num_blocks=24)
    together = crowded.generate(["prompt"] * len(wanted), wanted)
    assert crowded.metrics.preemptions > 0
    assert [[out.token_ids for out in output.outputs] for output in together] == expected


def test_refused_tokens_leave_the_probabilities_as_they_were(tokenizer: Tokenizer) -> None:
    """Among the allowed tokens the odds are those of a softmax over them, though most are found without a mask."""
    llm = grammar_llm(tokenizer, logits_of=lambda tokens, size: np.linspace(0, 2, size, dtype=np.float32))
    ids = [tokenizer.token_id(letter) for letter in "aez"]
    weights = np.exp(np.linspace(0, 2, GRAMMAR_VOCAB_SIZE)[ids] + [3.0, 3.0, 0.0])
    bias = {ids[0]: 3.0, ids[1]: 3.0}
    tries = params(Grammar("regex", "[aez]"), temperature=1.0, n=8, logit_bias=bias, max_tokens=4)
    counts = dict.fromkeys("aez", 0)
    for seed in range(100):
        for out in llm.generate("x", dataclasses.replace(tries, seed=seed))[0].outputs:
            counts[out.text] += 1
    expected = 800 * weights / weights.sum()
    chi_square = (((np.array(list(counts.values())) - expected) ** 2) / expected).sum()
    assert chi_square < 13.8, (counts, expected)  # 0.1 % for two degrees of freedom


# --- errors -------------------------------------------------------------------------------------------------------

INVALID = [
    ("json_schema", "{", "JSON"), ("json_schema", "[1]", "object"), ("json_schema", '{"type": "strin"}', "strin"),
    ("json_schema", '{"$ref": "http://example.com/schema"}', "example.com"),
    ("json_schema", '{"$ref": "#"}', "no text"),
    ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 1}', "minimum"), ("json_schema", "false", "object"),
    ("regex", "(a", "unclosed group"), ("regex", "(?=a)b", "look-around"),
    ("regex", r"(a)\1", "backreferences"), ("lark", "start: b", "unknown name"),
    ("lark", 'b: "a"', "start"), ("lark", "start: <|no_such_token|>", "no_such_token"),
    ("lark", "start: start", "no text"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "reason"), INVALID)
def test_impossible_grammars_say_why(llm: LLM, kind: Any, text: str, reason: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(reason)) as error:
        llm.generate("x", params(Grammar(kind, text)))
    assert "\n" not in str(error.value)
    assert not llm.text_engine.has_unfinished()


# What pydantic makes of set, bytes, SecretStr, Decimal and unions, and what others write.
BEYOND: list[tuple[dict[str, Any], str, Any]] = [
    ({"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "maxItems": 3}, "uniqueItems", list),
    ({"enum": ["a", "b"], "not": {"const": "a"}}, "not", str),
    ({"type": "string", "format": "binary", "maxLength": 4}, "format.binary", str),
    ({"type": "string", "pattern": "^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$", "maxLength": 4}, "pattern", str),
    ({"oneOf": [{"enum": [1, 2]}, {"enum": [2, 3]}]}, "oneOf", int),
    ({"type": "object", "propertyNames": {"maxLength": 1}, "additionalProperties": {"enum": [1]}, "maxProperties": 1},
     "propertyNames", dict),
    ({"type": "object", "minProperties": 3, "required": ["a"], "properties": {"a": {"enum": [1]}},
      "patternProperties": {"^b{1,2}$": {"enum": [1]}}, "additionalProperties": False}, "minProperties", dict),
    ({"type": "object", "properties": {"pattern": {"enum": ["(?=a)"]}, "not": {"enum": [5]}}, "required": ["not"],
      "additionalProperties": False, "if": {"required": ["pattern"]}, "then": False}, "if then", dict),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "names", "kind"), BEYOND, ids=lambda value: str(value)[:30])
def test_what_a_grammar_can_not_hold_is_left_aside_and_named(
    llm: LLM, schema: dict[str, Any], names: str, kind: type, caplog: pytest.LogCaptureFixture
) -> None:
    grammar = Grammar("json_schema", json.dumps(schema))
    assert llm.text_engine.grammars is not None
    left_aside = llm.text_engine.grammars.compile(grammar).left_aside
    assert left_aside == tuple(names.split())
    outputs = [out.outputs[0] for out in llm.generate([f"{i}" for i in range(16)], params(grammar, max_tokens=80))]
    finished = [json.loads(output.text) for output in outputs if output.finish_reason == "stop"]
    assert finished and all(isinstance(value, kind) for value in finished)
    assert caplog.text.count(left_aside[0]) == 1, "named once"
    with pytest.raises(GrammarError):
        llm.generate("x", params(Grammar("json_schema", json.dumps(schema), is_strict=True)))


def test_a_schema_that_can_be_held_leaves_nothing_aside(llm: LLM) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^a+$", "description": "(?=x)"}}}
    for is_strict in (True, False):
        grammar = Grammar("json_schema", json.dumps(schema), is_strict=is_strict)
        assert llm.text_engine.grammars is not None and llm.text_engine.grammars.compile(grammar).left_aside == ()


def test_white_space_is_bounded(llm: LLM) -> None:
    """A model that would write nothing else comes to an end all the same."""
    assert llm.tokenizer is not None
    blanks = dict.fromkeys(llm.tokenizer.encode(" \n\t", add_special_tokens=False), 50.0)
    schema = '{"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": false}'
    for text in (schema, '{"type": "array", "items": {"enum": [1]}, "maxItems": 3}'):
        grammar = Grammar("json_schema", text)
        output = llm.generate("x", params(grammar, logit_bias=blanks, max_tokens=250, temperature=0))[0].outputs[0]
        assert output.finish_reason == "stop" and output.text.strip()[0] in "[{"


def test_counts_that_can_be_kept(llm: LLM) -> None:
    """A name left to the model may come twice, and then is one property."""
    schema = {"type": "object", "minProperties": 2, "required": ["a"], "additionalProperties": {"enum": [1]}}
    wanted = params(Grammar("json_schema", json.dumps(schema)), max_tokens=60)
    texts = [out.outputs[0].text for out in llm.generate([f"{i}" for i in range(20)], wanted)]
    assert all(len(json.loads(text)) >= 2 for text in texts if text.endswith("}"))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("yaml", "x"),
        ("regex", ""),
        ("regex", 5),
        ("json_object", "{}"),
        ("regex", "a" * 9000),
        ("lark", "\ud800"),
        ("lark", "\n" * 1000),
    ],
)
def test_grammars_that_are_none(kind: Any, text: Any) -> None:
    with pytest.raises(GrammarError):
        Grammar(kind, text)


@pytest.mark.parametrize("choices", [[], "yes", [1], None])
def test_choices_that_are_none(choices: Any) -> None:
    with pytest.raises(GrammarError):
        Grammar.choice(choices)


def test_params_take_grammars_only() -> None:
    with pytest.raises(RequestError, match="grammar"):
        SamplingParams(grammar="[a-z]")  # type: ignore[arg-type]


def test_without_a_tokenizer() -> None:
    with pytest.raises(GrammarError, match="tokenizer"):
        grammar_llm(None).generate([1, 2], params())
    with pytest.raises(RequestError, match="TextEngine"):
        grammar_llm(None).engine.add_request([1, 2], params())


def test_without_llguidance(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=re.escape("qwench[structured]")):
        grammar_llm(tokenizer).generate("x", params())
