"""Chat templates against transformers' own rendering, and templates that misbehave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from text_fixtures import SHARED, qwen2_tokenizer, tiny_tokenizer, write_tiny

from qwench.errors import CheckpointError, RequestError
from qwench.text.chat import render_chat, template_variables
from qwench.text.tokenizer import Tokenizer

TINY = Path(__file__).parents[2] / "models" / "qwench-tiny"
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"city": "naïve <b>"}}}]
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Ä <|im_end|> & <tag>"}],
    [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "3\n\n"}],
    [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {"é": 1}}}]},
        {"role": "tool", "content": "sunny"},
        {"role": "tool", "content": "warm"},
    ],
]
TEMPLATE = """
{%- for m in messages %}
    {%- if loop.index0 == 2 %}{% break %}{% endif %}
    {%- set ns = namespace(x=1) %}{% set ns.x = loop.index %}
  {{ m.role }}: {{ m | tojson(indent=2) }} {{ ns.x }}
    {%- if m.role == 'assistant' %}{% generation %}said {{ m.content }}{% endgeneration %}{% endif %}
{% endfor %}
{{ eos_token }}{{ bos_token }}{{ tools is none }}{{ strftime_now('%%') }}{{ mood }}
"""


@pytest.fixture(scope="module")
def theirs() -> Any:
    transformers = pytest.importorskip("transformers")
    if not SHARED.exists():
        pytest.skip("needs ../shared/data/qwen2-tokenizer")
    return transformers.AutoTokenizer.from_pretrained(str(SHARED))


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("prompt", [True, False])
def test_as_transformers(theirs: Any, messages: list[Any], tools: Any, prompt: bool) -> None:
    options = {"tools": tools, "add_generation_prompt": prompt}
    expected = theirs.apply_chat_template(messages, tokenize=False, **options)
    ours = qwen2_tokenizer()
    assert render_chat(ours, messages, **options) == expected
    ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    assert ours.encode(expected, add_special_tokens=False) == list(ids)


def test_a_turn_that_can_not_go_on() -> None:
    for template in ("{{ messages[0].content }}", "{{ messages[-1].content[:3] }}"):
        with pytest.raises(RequestError, match="last message"):
            render_chat(tiny_tokenizer(), CONVERSATIONS[2], chat_template=template, continue_final_message=True)
    with pytest.raises(RequestError, match="content is text"):
        render_chat(tiny_tokenizer(), [{"role": "user"}], continue_final_message=True)


def test_the_variables_of_a_template(tmp_path: Path) -> None:
    template = "{% set x = 1 %}{% if enable_thinking is defined %}{{ messages }}{{ x }}{% endif %}"
    tokenizer = Tokenizer(write_tiny(tmp_path))
    named = {"default": template, "tool_use": "{{ y }}"}
    for source, names in ((None, ""), ("{% if %}", ""), (template, "enable_thinking messages"),
                          (named, "enable_thinking messages y")):  # fmt: skip
        tokenizer.chat_template = source
        assert sorted(template_variables(tokenizer)) == names.split()


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_everything_a_template_may_use(theirs: Any, messages: list[Any]) -> None:
    expected = theirs.apply_chat_template(messages, chat_template=TEMPLATE, tokenize=False, mood="good")
    ours = render_chat(qwen2_tokenizer(), messages, chat_template=TEMPLATE, add_generation_prompt=False, mood="good")
    assert ours == expected


@pytest.mark.parametrize(
    ("template", "error", "says"),
    [
        ("{{ raise_exception('no tools') }}", RequestError, "no tools"),
        ("{{ messages.append(1) }}", RequestError, "refuses"),
        ("{{ ''.__class__.__mro__ }}", RequestError, "refuses"),
        ("{{ messages[3].content }}", RequestError, "refuses"),
        ("{% if %}", CheckpointError, "line 1"),
    ],
)
def test_misbehaving_templates(
    template: str,
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        render_chat(tiny_tokenizer(), [{"role": "user", "content": "x"}], chat_template=template)


@pytest.mark.parametrize("messages", [[], "Hi", ["Hi"], [{"content": "Hi"}], {"role": "user"}])
def test_what_is_no_conversation(messages: Any) -> None:
    with pytest.raises(RequestError):
        render_chat(tiny_tokenizer(), messages, chat_template="x")


def test_named_and_missing_templates(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "x"}]
    tokenizer = Tokenizer(write_tiny(tmp_path))
    with pytest.raises(CheckpointError, match="no chat template"):
        render_chat(tokenizer, messages)
    tokenizer.chat_template = {"default": "plain", "tool_use": "tools"}
    assert render_chat(tokenizer, messages) == "plain"
    assert render_chat(tokenizer, messages, tools=TOOLS) == "tools"


QWEN2_5 = (Path(__file__).parent / "qwen2_5_chat_template.jinja").read_text()


TRIMMING = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}"
ENDS = ["", "Once", "Once upon ", "\n\nOnce\n", "Hi <|im_end|>", "1", "é🦊"]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("template", [QWEN2_5, TRIMMING])
def test_the_last_turn_goes_on_as_in_transformers(end: str, template: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(TINY))
    messages = [*CONVERSATIONS[2], {"role": "assistant", "content": end}]
    expected = theirs.apply_chat_template(
        messages, tokenize=False, chat_template=template, continue_final_message=True, add_generation_prompt=False
    )
    assert render_chat(Tokenizer(TINY), messages, chat_template=template, continue_final_message=True) == expected
    assert messages[-1]["content"] == end


def test_qwens_template_writes_tools_calls_and_results() -> None:
    """Word for word as in Qwen2.5's documentation."""
    messages = CONVERSATIONS[3]
    assert render_chat(tiny_tokenizer(), messages, tools=TOOLS, chat_template=QWEN2_5) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.\n\n# Tools\n\n"
        "You may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        '{"type": "function", "function": {"name": "weather", "parameters": {"city": "naïve <b>"}}}\n</tools>\n\n'
        "For each function call, return a json object with function name and arguments within <tool_call></tool_call> "
        'XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nWeather?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"é": 1}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response>\n<tool_response>\nwarm\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_template_that_leaves_tools_out() -> None:
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    with pytest.raises(RequestError, match="no place for tools"):
        render_chat(tiny_tokenizer(), CONVERSATIONS[0], tools=TOOLS, chat_template=plain)
    with pytest.raises(RequestError, match="no place for the tool calls"):
        render_chat(tiny_tokenizer(), CONVERSATIONS[3], chat_template=plain)
    assert render_chat(tiny_tokenizer(), CONVERSATIONS[0], tools=[], chat_template=plain) == "user: Hi"
