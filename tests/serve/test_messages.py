"""/v1/messages with Anthropic's own client, unmodified, and as Claude Code asks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import ServerProcess, running_server
from tool_checkpoint import MESSAGES, NOW, WEATHER

from qwench import LLM, SamplingParams
from qwench.serve.protocol.anthropic.replies import Message, MessageError, TokenCount
from qwench.serve.protocol.openai.replies import ModelList

anthropic = pytest.importorskip("anthropic", reason="the tests of real clients need anthropic")

STORY = [{"role": "user", "content": "Tell me a story about a fox."}]
GREEDY = {"temperature": 0}
TOOLS = [
    {"name": tool["function"]["name"], "description": "x", "input_schema": tool["function"].get("parameters", {})}
    for tool in (WEATHER, NOW)
]
KEY = "0123456789abcdef-a-good-key"


def connected(server: ServerProcess, **options: Any) -> Any:
    given = {"base_url": server.url, "api_key": "none", "max_retries": 0, "timeout": 60, **options}
    return anthropic.Anthropic(**given)


@pytest.fixture(scope="module")
def plain(server: ServerProcess) -> Any:
    return connected(server)


@pytest.fixture(scope="module")
def caller(tool_server: ServerProcess) -> Any:
    return connected(tool_server)


@pytest.fixture(scope="module")
def thinker(thinking_server: ServerProcess) -> Any:
    return connected(thinking_server)


@pytest.fixture(scope="module")
def http(tool_server: ServerProcess) -> Iterator[httpx.Client]:
    with tool_server.client() as http:
        yield http


def ask(client: Any, messages: Any = STORY, max_tokens: int = 30, sampling: Any = GREEDY, **fields: Any) -> Any:
    """Whole and streamed, which must be the same but for ids."""
    asked = {"model": "tiny", "messages": messages, "max_tokens": max_tokens, "extra_body": sampling, **fields}
    whole = client.messages.create(**asked)
    Message.model_validate(whole.model_dump(exclude_unset=True))
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    assert said(streamed) == said(whole)
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    assert sum_of_input(streamed) == sum_of_input(whole)
    return whole


def said(message: Any) -> Any:
    blocks = [block.model_dump(exclude={"id", "parsed_output"}, exclude_none=True) for block in message.content]
    return blocks, message.stop_reason, message.stop_sequence


def sum_of_input(message: Any) -> int:
    return int(message.usage.input_tokens + message.usage.cache_read_input_tokens)


def truth(llm: LLM, messages: Any = STORY, **params: Any) -> Any:
    return llm.chat(messages, SamplingParams(**{"temperature": 0, "max_tokens": 30, **params}))[0]


def test_an_answer_is_the_models(plain: Any, llm: LLM) -> None:
    message, expected = ask(plain), truth(llm)
    assert message.content[0].text == expected.outputs[0].text and message.model == "tiny"
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 30)
    assert sum_of_input(message) == len(expected.prompt_token_ids)
    assert message.id.startswith("msg_") and message._request_id.startswith("req_")
    to_the_end = ask(plain, max_tokens=300)
    assert to_the_end.stop_reason == "end_turn" and len(to_the_end.content) == 1


def test_a_stop_sequence(plain: Any) -> None:
    text = ask(plain).content[0].text
    message = ask(plain, stop_sequences=[text[20:28], "xyz"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", text[20:28])
    assert message.content[0].text == text[:20]


def test_a_context_that_is_full_says_so(plain: Any) -> None:
    message = ask(plain, [{"role": "user", "content": "fox " * 1900}], 2000, {**GREEDY, "ignore_eos": True})
    assert message.stop_reason == "model_context_window_exceeded"
    assert sum_of_input(message) + message.usage.output_tokens == 2048


def test_nothing_but_the_prompt(plain: Any) -> None:
    message = ask(plain, max_tokens=0)
    assert message.content == [] and message.usage.output_tokens == 0 and message.stop_reason == "max_tokens"


@pytest.mark.parametrize("system", ["Be brief.", [{"type": "text", "text": "Be brief."}]])
def test_the_conversation_as_the_template_gets_it(plain: Any, llm: LLM, system: Any) -> None:
    """System and blocks, cache marks, and a turn of the assistant to go on with."""
    mark = {"cache_control": {"type": "ephemeral"}}
    blocks = [{"type": "text", "text": "Tell me"}, {"type": "text", "text": "a story.", **mark}]
    turns = [{"role": "user", "content": blocks}, {"role": "assistant", "content": "Once"},
             {"role": "user", "content": "Go on."}]  # fmt: skip
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Tell me\na story."},
        *turns[1:],
    ]
    expected = truth(llm, messages)
    assert ask(plain, turns, system=system, **mark).content[0].text == expected.outputs[0].text
    count = plain.messages.count_tokens(model="tiny", messages=turns, system=system)
    assert count.input_tokens == len(expected.prompt_token_ids)
    prefill = [*STORY, {"role": "assistant", "content": [{"type": "text", "text": "Once upon a"}]}]
    goes_on = llm.chat([*STORY, {"role": "assistant", "content": "Once upon a"}],
                       SamplingParams(temperature=0, max_tokens=30), continue_final_message=True)[0]  # fmt: skip
    assert ask(plain, prefill).content[0].text == goes_on.outputs[0].text


def test_a_whole_round_with_tools(caller: Any) -> None:
    first = ask(caller, MESSAGES, 200, tools=TOOLS, tool_choice={"type": "tool", "name": "weather"})
    [call] = first.content
    assert call.name == "weather" and set(call.input) == {"city"} and first.stop_reason == "tool_use"
    assert call.id.startswith("toolu_")
    parts = [{"type": "text", "text": "Sunny,"}, {"type": "text", "text": "21 degrees."}]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": parts, "cache_control": {"type": "ephemeral"}}
    turns = [*MESSAGES, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    raw = caller.messages.with_raw_response.create(model="tiny", max_tokens=1, messages=turns, tools=TOOLS)
    assert "x-qwench-ignored" not in raw.headers
    second = ask(caller, turns, 12, tools=TOOLS)
    assert second.content[0].type == "text"
    wished = ask(caller, MESSAGES, 300, tools=TOOLS, tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert [block.type for block in wished.content] == ["tool_use"]
    silent = ask(caller, MESSAGES, 12, tools=TOOLS, tool_choice={"type": "none"})
    assert [block.type for block in silent.content] == ["text"]


def test_calls_and_results_are_what_chats_make_of_them(http: httpx.Client) -> None:
    """The prompt is that of the same conversation in OpenAI's words."""
    call = {"type": "function", "id": "toolu_1", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    chat = [*MESSAGES, {"role": "assistant", "content": "I ask.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "toolu_1", "content": "the call failed"},
            {"role": "user", "content": "And?"}]  # fmt: skip
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": True}
    turns = [*MESSAGES, {"role": "assistant", "content": [{"type": "text", "text": "I ask."}, use]},
             {"role": "user", "content": [result, {"type": "text", "text": "And?"}]}]  # fmt: skip
    expected = http.post("/tokenize", json={"messages": chat, "tools": [WEATHER]}).json()["count"]
    tool = {**TOOLS[0], "description": WEATHER["function"]["description"]}
    answer = http.post("/v1/messages/count_tokens", json={"messages": turns, "tools": [tool], "model": "tiny"})
    assert TokenCount.model_validate(answer.json()).input_tokens == expected


def test_thinking(thinker: Any, thinking_artifact: Path) -> None:
    budget = {"type": "enabled", "budget_tokens": 6}
    message = ask(thinker, MESSAGES, 24, thinking=budget)
    with LLM(thinking_artifact, num_threads=1) as llm:
        expected = truth(llm, MESSAGES, max_tokens=24, max_thinking_tokens=6).outputs[0]
    thought, text = message.content
    assert (thought.thinking, text.text) == (expected.reasoning, expected.text) and thought.signature
    assert message.usage.output_tokens_details.thinking_tokens == expected.num_reasoning_tokens
    # What comes back goes to the template, thought and all.
    again = [*MESSAGES, {"role": "assistant", "content": message.content}, *STORY]
    assert ask(thinker, again, 24, thinking=budget).content
    hidden = ask(thinker, MESSAGES, 24, thinking={**budget, "display": "omitted"})
    assert [hidden.content[0].thinking, hidden.content[1].text] == ["", text.text]
    assert hidden.content[0].signature == thought.signature
    assert [block.type for block in ask(thinker, MESSAGES, 24, thinking={"type": "disabled"}).content] == ["text"]
    cut = ask(thinker, MESSAGES, 5)
    assert [block.type for block in cut.content] == ["thinking"] and cut.stop_reason == "max_tokens"


def test_a_form_of_the_answer(caller: Any) -> None:
    schema = {"type": "object", "properties": {"color": {"enum": ["red"]}}, "required": ["color"],
              "additionalProperties": False}  # fmt: skip
    form = {"format": {"type": "json_schema", "schema": schema}}
    assert json.loads(ask(caller, max_tokens=60, output_config=form).content[0].text) == {"color": "red"}


def test_errors_are_those_of_the_client(plain: Any, server: ServerProcess) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}}
    call = {"type": "tool_use", "id": "a", "name": "b", "input": {}}
    for content in ([image], [pdf], [call], [{"type": "wizard"}], 5, [5], [{"type": "text"}], None):
        with pytest.raises(anthropic.BadRequestError) as refusal:
            plain.messages.create(model="tiny", max_tokens=5, messages=[{"role": "user", "content": content}])
        error = MessageError.model_validate(refusal.value.body)
        assert error.error.type == "invalid_request_error" and error.request_id == refusal.value.request_id
    with pytest.raises(anthropic.BadRequestError, match="tool_result"):
        plain.messages.create(model="tiny", max_tokens=5, messages=[*STORY, {"role": "assistant", "content": [call]}])
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        plain.messages.create(model="tiny", max_tokens=5, messages=[{"role": "user", "content": "fox " * 3000}])
    with pytest.raises(anthropic.NotFoundError, match="only 'tiny'"):
        plain.messages.create(model="claude", max_tokens=5, messages=STORY)
    for path, status in (("/v1/messages/batches", 404), ("/v1/messages", 405)):
        answer = httpx.get(f"{server.url}{path}")
        assert answer.status_code == status and MessageError.model_validate(answer.json())


def test_keys(artifact: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    with running_server(artifact, "--name", "tiny", "--threads", "1", "--api-key-file", str(keys)) as server:
        for good in ({"api_key": KEY}, {"api_key": None, "auth_token": KEY}):
            assert ask(connected(server, **good), max_tokens=2).content
            assert connected(server, **good).models.list().data[0].display_name == "tiny"
        for bad in ({"api_key": "wrong"}, {"api_key": KEY[:-1]}, {"api_key": None, "auth_token": "wrong"}):
            with pytest.raises(anthropic.AuthenticationError) as refusal:
                ask(connected(server, **bad))
            assert MessageError.model_validate(refusal.value.body).error.type == "authentication_error"
            assert refusal.value.request_id
        both = {"x-api-key": "wrong", "authorization": f"Bearer {KEY}"}  # of which one is right
        assert httpx.get(f"{server.url}/v1/models", headers=both).status_code == 200


def test_the_models(plain: Any, server: ServerProcess) -> None:
    page = plain.models.list()
    assert [model.id for model in page] == ["tiny", "alias"] and page.data[0].created_at.year >= 2025
    assert page.has_more is False and plain.models.retrieve("tiny").display_name == "tiny"
    ModelList.model_validate(httpx.get(f"{server.url}/v1/models").json())


CLAUDE_CODE: dict[str, Any] = {
    "model": "tiny", "max_tokens": 32000, "temperature": 1, "stream": True,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.0; cch=a1b2c;"},
        {"type": "text", "text": "You are a coding agent.", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
    ],
    "messages": [
        {"role": "user", "content": [
            {"type": "text", "text": "<system-reminder>Today is Monday.</system-reminder>"},
            {"type": "text", "text": "List the files.", "cache_control": {"type": "ephemeral"}},
        ]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "I should look.", "signature": "abc"},
            {"type": "redacted_thinking", "data": "abc"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "toolu_01", "name": "Bash", "input": {"command": "ls"},
             "caller": {"type": "direct"}},
            {"type": "tool_use", "id": "toolu_02", "name": "Bash", "input": {"command": "pwd"}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_02", "content": "/", "is_error": False},
            {"type": "tool_result", "tool_use_id": "toolu_01", "content": [{"type": "text", "text": "a.py"}],
             "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "<system-reminder>Be careful.</system-reminder>"},
        ]},
    ],
    "tools": [{"name": "Bash", "description": "Runs a command.", "input_schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object",
        "properties": {"command": {"type": "string"}, "timeout": {"type": "number"}}, "required": ["command"],
        "additionalProperties": False,
    }}, {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}],
    "metadata": {"user_id": "user_abc_account__session_def"},
    "thinking": {"type": "enabled", "budget_tokens": 6},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "medium"},
}  # fmt: skip
BETAS = "claude-code-20250219,interleaved-thinking-2025-05-14,fine-grained-tool-streaming-2025-05-14"
HEADS = {
    "anthropic-version": "2023-06-01", "anthropic-beta": BETAS, "x-app": "cli", "authorization": "Bearer none",
    "anthropic-dangerous-direct-browser-access": "true", "user-agent": "claude-cli/2.1.0 (external, cli)",
}  # fmt: skip


def test_claude_code(thinking_server: ServerProcess) -> None:
    with thinking_server.client(headers=HEADS) as http:
        answer = http.post("/v1/messages?beta=true", json=CLAUDE_CODE)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        names = [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]
        assert names[:3] == ["message_start", "ping", "content_block_start"]
        assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        ignored = set(answer.headers.get("x-qwench-ignored", "").split(", "))
        assert ignored == {"tools[].web_search_20250305", "reasoning_effort"}
        quota = {"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": "quota"}],
                 "metadata": CLAUDE_CODE["metadata"]}  # fmt: skip
        Message.model_validate(http.post("/v1/messages?beta=true", json=quota).json())
        counted = {name: CLAUDE_CODE[name] for name in ("model", "messages", "tools", "system", "thinking")}
        count = http.post("/v1/messages/count_tokens?beta=true", json=counted).json()["input_tokens"]
        chat = {"messages": chat_of(CLAUDE_CODE), "tools": [tool_of(CLAUDE_CODE["tools"][0])]}
        assert count == http.post("/tokenize", json=chat).json()["count"]
        assert http.head("/").status_code == 200


def chat_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The same conversation as OpenAI has it, written down by hand."""
    calls = [
        {"id": block["id"], "type": "function",
         "function": {"name": block["name"], "arguments": json.dumps(block["input"])}}
        for block in body["messages"][1]["content"][3:]
    ]  # fmt: skip
    return [
        {"role": "system", "content": "You are a coding agent."},
        {"role": "user", "content": "<system-reminder>Today is Monday.</system-reminder>\nList the files."},
        {"role": "assistant", "content": "I look.", "reasoning_content": "I should look.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "toolu_01", "content": "a.py"},
        {"role": "tool", "tool_call_id": "toolu_02", "content": "/"},
        {"role": "user", "content": "<system-reminder>Be careful.</system-reminder>"},
    ]


def tool_of(tool: dict[str, Any]) -> dict[str, Any]:
    function = {"name": tool["name"], "description": tool["description"], "parameters": tool["input_schema"]}
    return {"type": "function", "function": function}
