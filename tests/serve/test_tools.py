"""Tools over HTTP: what the model is told of them, what is refused, and calls as real clients see them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import ServerProcess, running_server
from tool_checkpoint import MESSAGES, NOW, WEATHER, tool_model

from qwench import LLM, SamplingParams
from qwench.serve.protocol.openai.replies import ChatCompletion, ResponseObject
from qwench.text.tool_calls import parse, tag_kind
from qwench.text.tool_grammar import call_grammar


@pytest.fixture(scope="module")
def http(tool_server: ServerProcess) -> Iterator[httpx.Client]:
    with tool_server.client() as http:
        yield http


def post(http: httpx.Client, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    defaults = {"input": MESSAGES} if path.endswith("responses") else {"messages": MESSAGES}
    return http.post(path, json={**defaults, "temperature": 0, **fields})


def test_tools_are_in_the_prompt_as_in_python(http: httpx.Client, tool_artifact: Path) -> None:
    tools = [WEATHER, NOW]
    shuffled = {"function": {**WEATHER["function"], "strict": False}, "type": "function"}
    flat = [{"type": "function", "strict": False, **tool["function"]} for tool in tools]
    with LLM(tool_artifact, num_threads=1) as llm:
        truth = llm.chat(MESSAGES, SamplingParams(max_tokens=8, temperature=0), tools=tools)[0]
        calls = [{"type": "function", "id": "a", "function": {"name": "weather", "arguments": {"city": "Paris"}}}]
        history = [
            *MESSAGES, {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "sunny", "tool_call_id": "a"},
        ]  # fmt: skip
        grammar = call_grammar([WEATHER], tag_kind(llm.tokenizer), is_single=True)
        forced_params = SamplingParams(temperature=0, grammar=grammar)
        call = llm.chat(MESSAGES, forced_params, tools=tools)[0].outputs[0].text
        later = llm.chat(history, SamplingParams(max_tokens=8, temperature=0), tools=tools)[0]
    ids = http.post("/tokenize", json={"messages": MESSAGES, "tools": tools}).json()["tokens"]
    assert ids == truth.prompt_token_ids
    for choice in ("auto", "none"):
        answer = post(http, max_tokens=8, tools=[shuffled, NOW], tool_choice=choice).json()
        assert answer["choices"][0]["message"]["content"] == truth.outputs[0].text
        assert answer["usage"]["prompt_tokens"] == len(truth.prompt_token_ids)
    message = post(http, tools=tools, tool_choice=named("weather")).json()["choices"][0]["message"]
    assert functions(message["tool_calls"]) == [(part.name, part.arguments) for part in parse(call)]
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


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def forced(text: str) -> dict[str, Any]:
    """The model's answer is this text, as if it had chosen it."""
    return {"structured_outputs": {"choice": [text]}}


def written(text: str, has_tag_tokens: bool) -> dict[str, Any]:
    """The same where the tags may be tokens, which a grammar must name."""
    if not has_tag_tokens:
        return forced(text)
    parts = re.split("(</?tool_call>)", text)
    rule = " ".join(part if i % 2 else json.dumps(part) for i, part in enumerate(parts) if part)
    return {"structured_outputs": {"grammar": f"start: {rule}"}}


def content_and_calls(http: httpx.Client, **fields: Any) -> tuple[Any, list[tuple[str, str]], str]:
    """Of a chat, whole and streamed: both are the same."""
    choice = post(http, **fields).json()["choices"][0]
    whole = choice["message"]["content"] or "", functions(choice["message"].get("tool_calls"))
    content, reason = "", None
    calls: list[dict[str, Any]] = []
    for line in post(http, stream=True, **fields).text.split("\n\n"):
        if line.startswith("data: {"):
            chunk = json.loads(line.removeprefix("data: "))["choices"][0]
            content, reason = content + chunk["delta"].get("content", ""), chunk["finish_reason"] or reason
            for call in chunk["delta"].get("tool_calls", ()):
                if call["index"] == len(calls):
                    calls.append(call)
                else:
                    calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    assert (content, functions(calls), reason) == (*whole, choice["finish_reason"])
    return choice["message"]["content"], whole[1], choice["finish_reason"]


def functions(calls: Any) -> list[tuple[str, str]]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls or ()]


PARIS = ("weather", '{"city": "Paris"}')
BROKEN = CALL.replace('"weather"', "weather")
OBJECT = CALL[12:-13]


@pytest.fixture(scope="module", params=["text", "tokens", "special tokens"])
def any_tags(request: Any, tool_server: ServerProcess, tmp_path_factory: Any) -> Iterator[tuple[httpx.Client, bool]]:
    """A server, and whether tags are tokens there."""
    if request.param == "tokens":
        with tool_server.client() as http:
            yield http, True
        return
    is_special = request.param == "special tokens"
    model = tool_model(tmp_path_factory.mktemp("tags"), has_tag_tokens=is_special, are_special=is_special)
    with running_server(model, "--threads", "1") as server, server.client() as http:
        yield http, is_special


@pytest.mark.parametrize(
    ("text", "content", "calls", "reason"),
    [
        ("Hello there.", "Hello there.", [], "stop"),
        (CALL, None, [PARIS], "tool_calls"),
        (f"Let me see.\n{CALL}\n{CALL} Done.", "Let me see. Done.", [PARIS, PARIS], "tool_calls"),
        (CALL.replace("Paris", "</tool_cal"), None, [("weather", '{"city": "</tool_cal"}')], "tool_calls"),
        (BROKEN, BROKEN, [], "stop"),
        (f"{CALL}{BROKEN}", BROKEN, [PARIS], "tool_calls"),
        (CALL.replace("weather", "wether"), CALL.replace("weather", "wether"), [], "stop"),
        (CALL.replace("}}", "}"), None, [PARIS], "tool_calls"),
        (OBJECT, None, [PARIS], "tool_calls"),
        (f"<tool_call>[{OBJECT}]", None, [PARIS], "tool_calls"),
        (f"I look.\n```json\n{OBJECT}\n```\n", "I look.", [PARIS], "tool_calls"),
        (f"```\n{CALL}\n```", f"```\n{CALL}\n```", [], "stop"),
    ],
)
def test_calls_that_the_model_chooses_to_make(
    any_tags: tuple[httpx.Client, bool], text: str, content: str | None, calls: list[tuple[str, str]], reason: str
) -> None:
    http, has_tokens = any_tags
    fields = {"tools": [WEATHER, NOW], **written(text, has_tokens)}
    assert content_and_calls(http, **fields) == (content, calls, reason)
    assert content_and_calls(http, **{**fields, "tools": [WEATHER]}) == (content, calls, reason)
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NOW]}}
    for choice in ("none", allowed):  # no call is one of the tool's
        plain = content_and_calls(http, **fields, tool_choice=choice)
        assert plain[1:] == ([], "stop")


def test_only_exact_calls_where_that_is_wanted(tool_artifact: Path) -> None:
    with running_server(tool_artifact, "--threads", "1", "--strict-calls") as server, server.client() as http:
        for text in (CALL.replace("arguments", "parameters"), OBJECT, f"```json\n{OBJECT}\n```"):
            assert content_and_calls(http, tools=[WEATHER], **written(text, True)) == (text, [], "stop")
        assert content_and_calls(http, tools=[WEATHER], **written(CALL, True)) == (None, [PARIS], "tool_calls")


def test_a_document_is_no_call(http: httpx.Client) -> None:
    """Whatever it looks like, where that was its form."""
    schema = {"const": json.loads(OBJECT)}
    content, calls, reason = content_and_calls(http, tools=[WEATHER], structured_outputs={"json": schema})
    assert json.loads(content) == json.loads(OBJECT) and (calls, reason) == ([], "stop")


def argument_deltas(http: httpx.Client, **fields: Any) -> list[str]:
    """As they were streamed, of one call."""
    chunks = [line for line in post(http, stream=True, **fields).text.split("\n\n") if "tool_calls" in line]
    calls = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("tool_calls") for line in chunks]
    return [call["function"]["arguments"] for [call] in filter(None, calls)]


@pytest.mark.parametrize(
    "fields", [{"tool_choice": "required"}, {"structured_outputs": True}], ids=["forced", "chosen"]
)
def test_arguments_trickle_in(http: httpx.Client, fields: dict[str, Any]) -> None:
    if "structured_outputs" in fields:
        fields = written(CALL, True)
    head, *rest = argument_deltas(http, tools=[WEATHER], parallel_tool_calls=None, max_tokens=60, **fields)
    assert head == "" and len(rest) > 3 and json.loads("".join(rest))["city"] in ("Paris", "London")


def test_whole_calls_where_these_are_wanted(tool_artifact: Path) -> None:
    with running_server(tool_artifact, "--threads", "1", "--whole-calls") as server, server.client() as http:
        for fields in (written(CALL, True), {"tool_choice": named("weather")}):
            head, arguments = argument_deltas(http, tools=[WEATHER], **fields)
            assert head == "" and json.loads(arguments)["city"] in ("Paris", "London")
        content, calls, reason = content_and_calls(http, tools=[WEATHER], tool_choice="required", max_tokens=12)
        assert content.startswith("<tool_call>\n{") and calls == [] and reason == "length"


def test_what_was_cut_off_is_what_there_is_of_it(http: httpx.Client) -> None:
    fields = {"tools": [WEATHER], "tool_choice": named("weather")}
    whole = content_and_calls(http, **fields)[1][0][1]
    seen = set()
    for size in range(1, 80, 2):
        content, calls, reason = content_and_calls(http, **fields, max_tokens=size)
        assert all(name == "weather" and whole.startswith(arguments) for name, arguments in calls)
        assert bool(content) != bool(calls) and reason in ("length", "tool_calls")
        seen.add((bool(calls), reason))
    assert seen == {(False, "length"), (True, "length"), (True, "tool_calls")}
    response = post(http, "/v1/responses", tools=[FLAT], tool_choice="required", max_output_tokens=30).json()
    assert [(item["type"], item["status"]) for item in response["output"]] == [("function_call", "incomplete")]


def test_several_answers_and_their_log_probabilities(http: httpx.Client) -> None:
    choices = post(
        http, tools=[WEATHER], tool_choice=named("weather"), n=3, temperature=1.2, seed=1, logprobs=True,
    ).json()["choices"]  # fmt: skip
    for choice in choices:
        [(name, arguments)] = functions(choice["message"]["tool_calls"])
        text = "".join(entry["token"] for entry in choice["logprobs"]["content"])
        assert text == f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def test_strict_functions_and_single_calls_without_being_told_to_call(http: httpx.Client) -> None:
    """The model may begin a call: then it is a right one. This one, pushed to it, does."""
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    push = {"logit_bias": {str(tag_id(http)): 100}, "max_tokens": 200}
    for fields in ({"tools": [strict]}, {"tools": [WEATHER], "parallel_tool_calls": False}):
        content, calls, _ = content_and_calls(http, **fields, **push)
        assert calls and all(json.loads(arguments)["city"] in ("Paris", "London") for _, arguments in calls)
        assert "parallel_tool_calls" not in fields or (content is None and len(calls) == 1)


def tag_id(http: httpx.Client) -> int:
    [token] = http.post("/tokenize", json={"prompt": "<tool_call>"}).json()["tokens"]
    return int(token)


def test_tools_together_with_a_form_of_the_answer(http: httpx.Client) -> None:
    """A message has it, or there are calls."""
    schema = {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"],
              "additionalProperties": False}  # fmt: skip
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    fields = {"tools": [WEATHER], "max_tokens": 200, **form}
    content, calls, _ = content_and_calls(http, **fields, logit_bias={str(tag_id(http)): -100})
    assert json.loads(content)["color"] in ("red", "blue") and calls == []
    content, calls, _ = content_and_calls(http, **fields, logit_bias={str(tag_id(http)): 100})
    assert content is None and calls
    assert content_and_calls(http, **fields, tool_choice="required", parallel_tool_calls=False)[1]
    assert content_and_calls(http, **fields, tool_choice="none")[1] == []
    text = post(http, "/v1/responses", tools=[FLAT], text={"format": {"type": "json_object"}}, max_output_tokens=30)
    assert text.status_code == 200


def test_what_no_grammar_holds_of_a_tools_schema_is_named(http: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"enum": [1]}, "uniqueItems": True}}}
    tool = {"type": "function", "function": {"name": "x", "parameters": schema}}
    answer = post(http, tools=[tool], tool_choice="required", max_tokens=8)
    assert answer.status_code == 200 and answer.headers["x-qwench-ignored"] == "tools.uniqueItems"
    assert "x-qwench-ignored" not in post(http, tools=[tool], max_tokens=1).headers


FLAT = {"type": "function", **WEATHER["function"]}


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
    {"tools": [named("")]}, {"tools": [named("x" * 129)]}, {"tools": [named("é")]},
    {"tools": [{"type": "function", "function": {"name": "x", "parameters": []}}]},
    {"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "string"}}}]},
    {"tool_choice": "required"}, {"tool_choice": named("weather")}, {"tools": [], "tool_choice": "required"},
    {"tools": [WEATHER], "tool_choice": "sometimes"}, {"tools": [WEATHER], "tool_choice": named("now")},
    {"tools": [WEATHER], "tool_choice": {"type": "custom", "custom": {"name": "x"}}},
    {"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
    {"tools": [WEATHER], "tool_choice": {"type": "allowed_tools",
                                         "allowed_tools": {"mode": "auto", "tools": [named("now")]}}},
    {"tools": [WEATHER], "tool_choice": "required", **forced(CALL)},
    {"tools": [{"type": "function", "function": {"name": "x", "strict": True, "parameters": {"not": {}}}}]},
    {"tools": [{"type": "function", "function": {"name": "x", "parameters": {"enum": [5]}}}],
     "tool_choice": "required"},
    {"parallel_tool_calls": "perhaps"}, {"functions": [{"name": "x"}]}, {"function_call": "auto"},
    {"messages": [{"role": "user", "content": None}]},
    {"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "a", **named("x")}]}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "type": "function"}]}]},
    {"messages": [{"role": "assistant", "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "x", "arguments": 5}}]}]},
]  # fmt: skip
BAD_RESPONSES: list[dict[str, Any]] = [
    {"tools": [{"type": "web_search"}]}, {"tool_choice": "required"},
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


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_of_tools_that_are_no_functions_it_is_said_which_they_are(http: httpx.Client, path: str) -> None:
    tools = [{"type": "web_search", "name": "web_search"}, {"type": "mcp", "server_label": "x"}]
    answer = post(http, path, tools=tools)
    assert answer.status_code == 400
    assert "no function among the tools, only web_search, mcp" in answer.json()["error"]["message"]


def test_refusals_are_quick(http: httpx.Client, tool_server: ServerProcess) -> None:
    """Below 20 ms on a quiet machine; here of processors' time, which is twice as long beside much other work."""
    call = {"id": "a", "type": "function", "function": {"name": "x", "arguments": "[" * 100}}
    bodies: list[dict[str, Any]] = [
        {"tools": [named(f"f{i}") for i in range(5000)]}, {"tools": [{str(i): i for i in range(10_000)}]},
        {"tools": [WEATHER], "tool_choice": {str(i): i for i in range(10_000)}},
        {"messages": [{"role": "assistant", "tool_calls": [call] * 1000}]},
        {"messages": [{"role": "assistant", "tool_calls": [{}] * 10_000}]},
        {"messages": [{"role": "tool", "content": {"x": 1}, "y": 1}] * 1000, "n": 0},
    ]  # fmt: skip
    for body in bodies:
        content = json.dumps({"messages": MESSAGES, **body})
        before_s = tool_server.cpu_s()
        for _ in range(9):
            answer = http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
            assert answer.status_code == 400
        taken_s = (tool_server.cpu_s() - before_s) / 9
        print(f"{taken_s * 1e3:.1f} ms for {content[:60]}")
        assert taken_s < 0.06, content[:60]


def test_answers_with_calls_are_as_documented(http: httpx.Client) -> None:
    for choice in ("required", "none"):
        fields = {"tools": [WEATHER], "tool_choice": choice, "max_tokens": 60}
        ChatCompletion.model_validate(post(http, **fields).json())
        fields = {"tools": [FLAT], "tool_choice": choice, "max_output_tokens": 60}
        ResponseObject.model_validate(post(http, "/v1/responses", **fields).json())
