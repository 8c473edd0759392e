"""Calls that a grammar sees to: whatever the logits, each is a tool's, with arguments that its schema allows."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from engine_models import history_engine

from qwench.checkpoint.tokenizer_files import byte_level_tokenizer
from qwench.errors import GrammarError
from qwench.llm import LLM
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.runtime.structured_output.grammar import Grammar
from qwench.text.generation import CompletionOutput, chat_params
from qwench.text.tokenizer import Tokenizer
from qwench.text.tool_calls import TagKind, ToolCall, parse, tag_kind
from qwench.text.tool_grammar import call_grammar

jsonschema = pytest.importorskip("jsonschema", reason="what is valid is said by jsonschema")
pytest.importorskip("llguidance", reason='grammars need pip install "qwench[structured]"')

WEATHER = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"City": {"enum": ["Paris", 'the "Hague"', "São Paulo", "<tool_call>"]}},
}
CLOSED = {"additionalProperties": False}
SCHEMAS: dict[str, Any] = {
    "weather": WEATHER,
    "now": None,
    "go_home-2": {"properties": {"x": {"type": "null"}}, **CLOSED},
}
TOOLS = [
    {"type": "function", "function": {"name": name, **({} if schema is None else {"parameters": schema})}}
    for name, schema in SCHEMAS.items()
]
KINDS: tuple[TagKind, ...] = get_args(TagKind)


@cache
def model(folder: Path, kind: TagKind) -> LLM:
    from tokenizers import AddedToken, models, pre_tokenizers

    vocab = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = byte_level_tokenizer(models.BPE(vocab, []))
    if kind != "text":
        tags = [AddedToken(tag, special=kind != "tokens", normalized=False) for tag in ("<tool_call>", "</tool_call>")]
        library.add_tokens(tags)
    path = folder / kind
    path.mkdir()
    library.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    tokenizer = Tokenizer(path)
    assert tag_kind(tokenizer) == kind
    return LLM.from_engine(history_engine(vocab_size=300, eos_token_ids=(tokenizer.eos_token_id,)), tokenizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


def answers(llm: LLM, kind: TagKind, **options: Any) -> list[CompletionOutput]:
    """Those of a random model that came to an end."""
    params = SamplingParams(
        grammar=call_grammar(TOOLS, kind, **options), temperature=1.5, seed=3, n=24, max_tokens=160,
        skip_special_tokens=False,
    )  # fmt: skip
    outputs = llm.generate("x", params)[0].outputs
    return [output for output in outputs if output.finish_reason == "stop"]


def check(call: ToolCall) -> None:
    arguments = json.loads(call.arguments)
    jsonschema.validate(arguments, {**CLOSED, **(SCHEMAS[call.name] or {})})
    assert isinstance(arguments, dict) and call.arguments == json.dumps(arguments, ensure_ascii=False)


@pytest.mark.parametrize("kind", KINDS)
def test_required_calls(folder: Path, kind: TagKind) -> None:
    found = [parse(output.text, list(SCHEMAS)) for output in answers(model(folder, kind), kind)]
    for parts in found:
        for call in parts:
            assert isinstance(call, ToolCall)
            check(call)
    assert len({call.name for parts in found for call in parts if isinstance(call, ToolCall)}) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_call_ends_the_answer(folder: Path, kind: TagKind) -> None:
    for output in answers(model(folder, kind), kind, is_single=True):
        [call] = parse(output.text, list(SCHEMAS))
        assert isinstance(call, ToolCall) and output.text.endswith("</tool_call>")
        check(call)


@pytest.mark.parametrize("kind", KINDS)
def test_tags_are_never_left_out_of_an_answer_with_tools(folder: Path, kind: TagKind) -> None:
    tokenizer = model(folder, kind).tokenizer
    assert tokenizer is not None
    params = [chat_params(SamplingParams(), tokenizer, frozenset(), has_tools=has_tools) for has_tools in (False, True)]
    ids = tokenizer.encode("<tool_call></tool_call>")
    shown = [tokenizer.decode(ids, skip_special_tokens=each.skip_special_tokens) for each in params]
    assert shown == ["" if kind == "special tokens" else "<tool_call></tool_call>", "<tool_call></tool_call>"]


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
WRONG = CALL.replace("Paris", "Rome")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("text", "single", "many"),
    [
        ("", True, True), ("Hello.", True, True), ("a <tool_cal </tool_ca", True, True), (CALL, True, True),
        (f"See.\n{CALL}", True, True), (f"{CALL}\n{CALL}", False, True), (f"a{CALL}b{CALL}{CALL}c", False, True),
        (WRONG, False, False), (f"See.\n{WRONG}", False, False), (CALL[:-3], False, False),
        ("<tool_call>", False, False), (CALL.replace("weather", "wether"), False, False),
    ],
)  # fmt: skip
def test_calls_that_are_only_allowed(folder: Path, kind: TagKind, text: str, single: bool, many: bool) -> None:
    """Text around them is free, but a call that is begun is a right one."""
    for is_single, is_right in ((True, single), (False, many)):
        assert obeys(model(folder, kind), call_grammar(TOOLS, kind, is_required=False, is_single=is_single), text) == (
            is_right
        )


def obeys(llm: LLM, grammar: Grammar, text: str) -> bool:
    assert llm.tokenizer is not None and llm.text_engine.grammars is not None
    matcher = llm.text_engine.grammars.compile(grammar).matcher()
    ids = llm.tokenizer.encode(text, add_special_tokens=False)
    return all(map(matcher.accept, ids)) and matcher.is_complete


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        (CALL, True), (f"{CALL}\n{CALL}", True), ('{"color": "red"}', True), ('{\n  "color": "red"\n}', True),
        ('{"color": 5}', False), (f'{{"color": "red"}}{CALL}', False), (WRONG, False), ("Hello.", False), ("", False),
    ],
)  # fmt: skip
def test_calls_or_an_answer_that_has_a_schema(folder: Path, kind: TagKind, text: str, is_right: bool) -> None:
    answer = {"type": "object", "properties": {"color": {"$ref": "#/$defs/c"}}, "$defs": {"c": {"type": "string"}},
              **CLOSED}  # fmt: skip
    grammar = call_grammar(TOOLS, kind, is_required=False, answer_schema=answer)
    assert obeys(model(folder, kind), grammar, text) == is_right


def test_a_call_is_written_as_qwens_template_does(folder: Path) -> None:
    """So that the model finds what it wrote when the conversation comes back."""
    from qwench.text.chat import render_chat

    llm = model(folder, "tokens")
    template = (Path(__file__).parents[1] / "unit" / "qwen2_5_chat_template.jinja").read_text()
    for output in answers(llm, "tokens"):
        calls = [part for part in parse(output.text) if isinstance(part, ToolCall)]
        functions = [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls]
        messages = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": function} for function in functions]},
        ]
        assert llm.tokenizer is not None
        text = render_chat(llm.tokenizer, messages, chat_template=template, add_generation_prompt=False)
        assert text.endswith(f"<|im_start|>assistant\n{output.text}<|im_end|>\n")


@pytest.mark.parametrize(
    ("schema", "may_have_more"),
    [
        ({"properties": {}}, False), ({"properties": {"a": {}}}, False), ({"properties": {"a": {}}, **CLOSED}, False),
        ({"properties": {"a": {}}, "additionalProperties": True}, True), ({"type": "object"}, True), ({}, True),
        ({"properties": {"a": {}}, "required": ["b"]}, True),
        ({"properties": {"a": {}}, "allOf": [{"properties": {"b": {}}}]}, True),
    ],
)  # fmt: skip
def test_arguments_that_a_schema_does_not_name(folder: Path, schema: dict[str, Any], may_have_more: bool) -> None:
    grammar = call_grammar([{"function": {"name": "x", "parameters": schema}}], "text")
    call = '<tool_call>\n{"name": "x", "arguments": {"b": 1}}\n</tool_call>'
    assert obeys(model(folder, "text"), grammar, call) == may_have_more


@pytest.mark.parametrize(
    "tools",
    [[{}], [None], [{"function": {"name": 5}}], [{"function": {"name": "x", "parameters": []}}],
     [{"function": {"name": "x", "parameters": {"type": "object", "not": {}}, "strict": True}}]],
)  # fmt: skip
def test_tools_that_can_not_be(folder: Path, tools: Any) -> None:
    with pytest.raises(GrammarError):
        model(folder, "text").generate("x", SamplingParams(grammar=call_grammar(tools, "text"), max_tokens=1))


def test_many_tools_with_long_descriptions(folder: Path) -> None:
    """What people read of a schema is left out; what looks like it and isn't stays."""
    properties = {
        "description": {"const": {"title": "x"}, "description": "What it is about, at some length. " * 20},
        "title": {"type": "array", "items": {"type": "string", "title": "Title"}, "default": ["long"] * 50},
    }
    schema = {"type": "object", "properties": properties, "required": ["description"], "title": "Arguments"}
    tools = [{"function": {"name": f"tool_{i}", "parameters": schema, "strict": True}} for i in range(64)]
    call = (
        '<tool_call>\n{"name": "tool_63", "arguments": {"description": {"title": "x"}, "title": ["y"]}}\n</tool_call>'
    )
    grammar = call_grammar(tools, "tokens")
    assert obeys(model(folder, "tokens"), grammar, call)
    assert not obeys(model(folder, "tokens"), grammar, call.replace('["y"]', "5"))
    assert not obeys(model(folder, "tokens"), grammar, call.replace('"description": {"title": "x"}, ', ""))
