"""Tools over HTTP: what the model is told of them, what is refused, and calls as real clients see them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import ServerProcess, running_server
from tool_checkpoint import write_tool_checkpoint

from qwench import LLM, QwenchConfig, SamplingParams, compile_checkpoint

MESSAGES = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather at a place.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NOW = {"type": "function", "function": {"name": "now"}}


@pytest.fixture(scope="module")
def tool_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Qwen2.5: the tags of calls are tokens, and not special."""
    folder = tmp_path_factory.mktemp("tools")
    checkpoint = write_tool_checkpoint(folder / "checkpoint", has_tag_tokens=True)
    compile_checkpoint(checkpoint, folder / "tiny", QwenchConfig(weights="int8", batch_size=8))
    return folder / "tiny"


@pytest.fixture(scope="module")
def tool_server(tool_model: Path) -> Iterator[ServerProcess]:
    with running_server(tool_model, "--name", "tiny", "--threads", "1") as server:
        yield server


@pytest.fixture(scope="module")
def http(tool_server: ServerProcess) -> Iterator[httpx.Client]:
    with tool_server.client() as http:
        yield http


def post(http: httpx.Client, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    defaults = {"input": MESSAGES} if path.endswith("responses") else {"messages": MESSAGES}
    return http.post(path, json={**defaults, "temperature": 0, **fields})


def test_tools_are_in_the_prompt_as_in_python(http: httpx.Client, tool_model: Path) -> None:
    tools = [WEATHER, NOW]
    shuffled = {"function": {**WEATHER["function"], "strict": False}, "type": "function"}
    flat = [{"type": "function", "strict": False, **tool["function"]} for tool in tools]
    with LLM(tool_model, num_threads=1) as llm:
        truth = llm.chat(MESSAGES, SamplingParams(max_tokens=8, temperature=0), tools=tools)[0]
        calls = [{"type": "function", "id": "a", "function": {"name": "weather", "arguments": {"city": "Paris"}}}]
        history = [
            *MESSAGES, {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "sunny", "tool_call_id": "a"},
        ]  # fmt: skip
        later = llm.chat(history, SamplingParams(max_tokens=8, temperature=0), tools=tools)[0]
    ids = http.post("/tokenize", json={"messages": MESSAGES, "tools": tools}).json()["tokens"]
    assert ids == truth.prompt_token_ids
    for choice in ("auto", "none"):
        answer = post(http, max_tokens=8, tools=[shuffled, NOW], tool_choice=choice).json()
        assert answer["choices"][0]["message"]["content"] == truth.outputs[0].text
        assert answer["usage"]["prompt_tokens"] == len(truth.prompt_token_ids)
    response = post(http, "/v1/responses", max_output_tokens=8, tools=flat).json()
    assert response["output"][0]["content"][0]["text"] == truth.outputs[0].text
    assert response["tools"] == [{"parameters": None, **tool} for tool in flat] and response["tool_choice"] == "auto"

    history[1]["tool_calls"] = [{**calls[0], "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}]
    answer = post(http, max_tokens=8, tools=tools, messages=history).json()
    assert answer["choices"][0]["message"]["content"] == later.outputs[0].text
    items = [
        *MESSAGES, {"type": "function_call", "call_id": "a", "name": "weather", "arguments": '{"city":"Paris"}'},
        {"type": "function_call_output", "call_id": "a", "output": "sunny"},
    ]  # fmt: skip
    response = post(http, "/v1/responses", max_output_tokens=8, tools=flat, input=items).json()
    assert response["output"][0]["content"][0]["text"] == later.outputs[0].text
    assert response["usage"]["input_tokens"] == answer["usage"]["prompt_tokens"] == len(later.prompt_token_ids)


def test_a_model_whose_template_knows_no_tools(server: ServerProcess, llm: LLM) -> None:
    """That of `server` doesn't. Better refused than answered as if there were none."""
    with server.client() as http:
        for path in ("/v1/chat/completions", "/v1/responses"):
            tools = [WEATHER["function"] | {"type": "function"}] if path.endswith("responses") else [WEATHER]
            answer = post(http, path, tools=tools)
            assert answer.status_code == 400 and "no place for tools" in answer.json()["error"]["message"]
        assert post(http, tools=[], max_tokens=1).status_code == 200


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


BAD_CHAT: list[dict[str, Any]] = [
    {"tools": [WEATHER] * 2}, {"tools": [WEATHER] * 129}, {"tools": WEATHER}, {"tools": [{}]}, {"tools": [None]},
    {"tools": [{"type": "web_search"}]}, {"tools": [{"type": "function"}]}, {"tools": [named("a b")]},
    {"tools": [named("")]}, {"tools": [named("x" * 65)]}, {"tools": [named("é")]},
    {"tools": [{"type": "function", "function": {"name": "x", "parameters": []}}]},
    {"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "string"}}}]},
    {"tools": [{"type": "function", "function": {"name": "x", "color": 1}}]},
    {"tool_choice": "required"}, {"tool_choice": named("weather")}, {"tools": [], "tool_choice": "required"},
    {"tools": [WEATHER], "tool_choice": "any"}, {"tools": [WEATHER], "tool_choice": named("now")},
    {"tools": [WEATHER], "tool_choice": {"type": "custom", "custom": {"name": "x"}}},
    {"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
    {"tools": [WEATHER], "tool_choice": {"type": "allowed_tools",
                                         "allowed_tools": {"mode": "auto", "tools": [named("now")]}}},
    {"parallel_tool_calls": "yes"}, {"functions": [{"name": "x"}]}, {"function_call": "auto"},
    {"messages": [{"role": "tool", "content": "x"}]}, {"messages": [{"role": "user", "content": None}]},
    {"messages": [{"role": "user", "content": "x", "tool_call_id": "a"}]},
    {"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "a", **named("x")}]}]},
    {"messages": [{"role": "assistant", "tool_calls": []}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"id": "a", **named("x")}]}]},
    {"messages": [{"role": "assistant", "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "x", "arguments": {}}}]}]},
]  # fmt: skip
BAD_RESPONSES: list[dict[str, Any]] = [
    {"tools": [WEATHER]}, {"tools": [{"type": "web_search"}]}, {"tool_choice": "required"},
    {"tools": [{"type": "function", "name": "x"}], "tool_choice": {"type": "function", "name": "y"}},
    {"input": [{"type": "function_call", "name": "x", "arguments": "{}"}]},
    {"input": [{"type": "function_call_output", "output": "x"}]}, {"input": [{"type": "reasoning"}]},
    {"input": [{"type": 5}]}, {"input": [None]}, {"input": [{"type": "function_call_output", "call_id": "a"}]},
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/v1/chat/completions", fields) for fields in BAD_CHAT] + [("/v1/responses", fields) for fields in BAD_RESPONSES],
    ids=lambda value: str(value)[:60],
)
def test_what_is_refused(http: httpx.Client, path: str, fields: dict[str, Any]) -> None:
    answer = post(http, path, **fields)
    assert answer.status_code == 400 and answer.json()["error"]["message"], answer.text


def test_refusals_are_quick(http: httpx.Client) -> None:
    """Below 20 ms on a quiet machine; here the best of some, with room for others."""
    call = {"id": "a", "type": "function", "function": {"name": "x", "arguments": "[" * 100}}
    bodies: list[dict[str, Any]] = [
        {"tools": [named(f"f{i}") for i in range(5000)]}, {"tools": [{str(i): i for i in range(10_000)}]},
        {"tools": [WEATHER], "tool_choice": {str(i): i for i in range(10_000)}},
        {"messages": [{"role": "assistant", "tool_calls": [call] * 1000}]},
        {"messages": [{"role": "assistant", "tool_calls": [{}] * 10_000}]},
        {"messages": [{"role": "tool", "content": "x"}] * 5000},
    ]  # fmt: skip
    for body in bodies:
        taken = []
        for _ in range(9):
            start = time.perf_counter()
            assert post(http, **body).status_code == 400
            taken.append(time.perf_counter() - start)
        assert min(taken) < 0.04, f"{taken} for {str(body)[:60]}"
