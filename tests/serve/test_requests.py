"""What clients send beside plain requests: taken, honoured or named, as request_table.py says."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from request_table import CHAT, COMPLETIONS, PLAIN, REFUSED, RESPONSES, SAME, TAKEN, USER, Case
from server_process import ServerProcess, running_server

from qwench import LLM
from qwench.errors import GrammarError
from qwench.serve.failures import ApiError
from qwench.serve.protocol.openai.chat import ChatRequest, to_template
from qwench.serve.protocol.openai.completions import CompletionRequest
from qwench.serve.protocol.openai.embeddings import EmbeddingRequest
from qwench.serve.protocol.openai.responses import ResponsesRequest
from qwench.serve.protocol.openai.tokens import DetokenizeRequest, TokenizeRequest
from qwench.serve.protocol.validation.reading import reading

BODIES: dict[str, Any] = {
    CHAT: ChatRequest, COMPLETIONS: CompletionRequest, RESPONSES: ResponsesRequest, "/v1/embeddings": EmbeddingRequest,
    "/tokenize": TokenizeRequest, "/detokenize": DetokenizeRequest,
}  # fmt: skip


@pytest.fixture(scope="module")
def http(tool_server: ServerProcess) -> Iterator[httpx.Client]:
    with tool_server.client() as http:
        yield http
        assert http.get("/ready").status_code == 200


def post(http: httpx.Client, path: str, **fields: Any) -> httpx.Response:
    content = json.dumps({**PLAIN[path], **fields})
    return http.post(path, content=content, headers={"content-type": "application/json"})


def said(answer: httpx.Response) -> Any:
    """All of an answer but its names and times."""
    assert answer.status_code == 200, answer.text
    text = re.sub(r'"(id|call_id)":"[^"]*"|"created(_at)?":[0-9]+', "", answer.text)
    return re.sub(r'"(max_output_tokens|tools|cached_tokens)":([0-9]+|null|\[[^]]*\])', "", text)


@pytest.mark.parametrize("case", TAKEN, ids=lambda case: f"{case.path}{json.dumps(case.fields)}"[:90])
def test_taken(http: httpx.Client, case: Case) -> None:
    answer = post(http, case.path, **case.fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers.get("x-qwench-ignored", "") == case.ignored


@pytest.mark.parametrize(("path", "loose", "plain"), SAME, ids=lambda value: str(value)[:60])
def test_a_form_means_what_the_plain_one_does(
    http: httpx.Client, path: str, loose: dict[str, Any], plain: dict[str, Any]
) -> None:
    assert said(post(http, path, **loose)) == said(post(http, path, **plain))


@pytest.mark.parametrize(("path", "fields"), REFUSED, ids=lambda value: str(value)[:60])
def test_refused(http: httpx.Client, path: str, fields: dict[str, Any]) -> None:
    answer = post(http, path, **fields)
    assert answer.status_code == (404 if fields.get("model") and fields["model"] != 5 else 400), answer.text
    assert answer.json()["error"]["message"]
    for name in ("functions", "function_call", "previous_response_id", "chat_template", "conversation"):
        assert name not in fields or answer.json()["error"]["param"] == name


NAMES = ["type", "content", "text", "function", "name", "schema", "tool_calls", "x"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
    | st.sampled_from(["text", "function", "tool", "auto", "json_schema", "reasoning", "message", "assistant"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def changed(data: st.DataObject, value: Any) -> Any:
    """With something within it replaced by any JSON."""
    if isinstance(value, dict | list) and value and data.draw(st.integers(0, 3)):
        key = data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        copy = value.copy()
        copy[key] = changed(data, value[key])
        return copy
    return data.draw(JSON)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_comes_is_read_or_refused(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(TAKEN))
    body = changed(data, case.body)
    with reading(is_strict=data.draw(st.booleans())), contextlib.suppress(ValidationError, ApiError, GrammarError):
        request = BODIES[case.path].model_validate(body)
        if isinstance(request, ResponsesRequest):
            request.to_messages()
        if isinstance(request, ChatRequest):
            to_template(request.messages)


def test_a_strict_server_refuses_what_has_no_effect(tool_artifact: Any) -> None:
    """And nothing else: other forms and names are as good there."""
    with (
        running_server(tool_artifact, "--name", "tiny", "--threads", "1", "--strict") as server,
        server.client() as http,
    ):
        for case in TAKEN:
            answer = post(http, case.path, **case.fields)
            assert answer.status_code == (400 if case.ignored else 200), (case, answer.text)
            if case.ignored:
                assert "unknown field" in answer.json()["error"]["message"]
        assert len(server.log) == 1, server.log


def test_what_is_ignored_is_in_the_log_once(tool_artifact: Any) -> None:
    with running_server(tool_artifact, "--threads", "1") as server, server.client() as http:
        for _ in range(3):
            answer = http.post(CHAT, json={**PLAIN[CHAT], "foo": 1, "bar\r\nx: y": 2, "stream": True})
            assert answer.headers["x-qwench-ignored"] == "foo, bar??x??y" and answer.text.endswith("[DONE]\n\n")
        many = http.post(COMPLETIONS, json={**PLAIN[COMPLETIONS], **{f"f{i}{'x' * 99}": i for i in range(200)}})
        assert many.status_code == 200 and len(many.headers["x-qwench-ignored"]) < 4096
        server.stop()
    assert sum("foo" in line for line in server.log) == 1 and len(server.log) < 100


def test_no_more_tokens_than_the_context_holds(http: httpx.Client) -> None:
    """Each prompt of several gets what is left for it."""
    prompts = ["fox " * 1900, "Once"]
    fields = {"max_tokens": 200, "ignore_eos": True, "temperature": 0}
    [long, short] = post(http, COMPLETIONS, prompt=prompts, **fields).json()["choices"]
    alone = [post(http, COMPLETIONS, prompt=prompt, **fields).json() for prompt in prompts]
    assert [long["text"], short["text"]] == [answer["choices"][0]["text"] for answer in alone]
    counts = [answer["usage"]["completion_tokens"] for answer in alone]
    assert counts == [2048 - alone[0]["usage"]["prompt_tokens"], 200] and counts[0] < 200
    for max_tokens in (-1, 10**9, "-1"):
        usage = post(http, COMPLETIONS, prompt=prompts[0], **{**fields, "max_tokens": max_tokens}).json()["usage"]
        assert usage["total_tokens"] == 2048
    full = post(http, COMPLETIONS, prompt="fox " * 3000, **fields)
    assert full.json()["error"]["code"] == "context_length_exceeded"


def test_the_last_tokens_of_a_prompt(http: httpx.Client) -> None:
    ids = http.post("/tokenize", json={"prompt": "fox and owl " * 400}).json()["tokens"]
    fields = {"temperature": 0, "max_tokens": 8}
    cut = post(http, COMPLETIONS, prompt="fox and owl " * 400, truncate_prompt_tokens=30, **fields).json()
    plain = post(http, COMPLETIONS, prompt=ids[-30:], **fields).json()
    assert cut["choices"][0]["text"] == plain["choices"][0]["text"] and cut["usage"]["prompt_tokens"] == 30
    longer = post(http, COMPLETIONS, prompt="fox and owl " * 3000, truncate_prompt_tokens=-1, **fields).json()
    assert longer["usage"]["prompt_tokens"] == 2040


def test_an_answer_goes_on_with_the_last_turn(http: httpx.Client, tool_artifact: Any) -> None:
    messages = [USER, {"role": "assistant", "content": "Once upon a"}]
    wishes: list[dict[str, Any]] = [
        {"continue_final_message": True}, {"continue_final_message": "true", "add_generation_prompt": False},
        {"messages": [USER, {**messages[1], "prefix": True}]}, {"messages": [USER, {**messages[1], "partial": True}]},
    ]  # fmt: skip
    with LLM(tool_artifact, num_threads=1) as llm:
        truth = llm.chat(messages, llm.defaults.params.__class__(temperature=0, max_tokens=12),
                         continue_final_message=True)[0]  # fmt: skip
    for wish in wishes:
        answer = post(http, CHAT, **{"messages": messages, "max_tokens": 12, **wish}).json()
        assert answer["choices"][0]["message"]["content"] == truth.outputs[0].text
        assert answer["usage"]["prompt_tokens"] == len(truth.prompt_token_ids)
    counted = post(http, "/tokenize", prompt=None, messages=messages, continue_final_message=True).json()
    assert counted["tokens"] == truth.prompt_token_ids
    other = post(http, CHAT, messages=messages, max_tokens=12).json()
    assert other["usage"]["prompt_tokens"] > len(truth.prompt_token_ids)


def test_prompt_logprobs_are_those_of_an_echo(http: httpx.Client) -> None:
    fields = {"prompt": "Once upon a time", "max_tokens": 1, "temperature": 0}
    shown = post(http, COMPLETIONS, prompt_logprobs=2, **fields).json()["choices"][0]
    echo = post(http, COMPLETIONS, echo=True, logprobs=2, **fields).json()["choices"][0]["logprobs"]
    ids = http.post("/tokenize", json={"prompt": fields["prompt"]}).json()["tokens"]
    assert shown["logprobs"] is None and shown["prompt_logprobs"][0] is None
    for i, (token, entry) in enumerate(zip(ids, shown["prompt_logprobs"], strict=True)):
        if entry is not None:
            assert entry[str(token)]["logprob"] == echo["token_logprobs"][i]
            assert {e["decoded_token"]: e["logprob"] for e in entry.values() if e["rank"]} == echo["top_logprobs"][i]
    chat = post(http, CHAT, prompt_logprobs=0, logprobs=True).json()
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    assert len(chat["choices"][0]["logprobs"]["content"]) == 2


def test_usage_with_each_chunk(http: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    answer = post(http, CHAT, max_tokens=6, ignore_eos=True, stream=True, stream_options=options)
    chunks = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 6 and len(set(counts)) > 3


def test_old_turns_give_way(http: httpx.Client) -> None:
    """With truncation auto as many of the latest turns are kept as fit; without, too long is too long."""
    turns = [{"role": role, "content": f"{i} " + "fox " * 150} for i in range(10) for role in ("user", "assistant")]
    items = [{"role": "system", "content": "Be brief."}, *turns, USER]
    assert post(http, RESPONSES, input=items).json()["error"]["code"] == "context_length_exceeded"
    answer = post(http, RESPONSES, input=items, truncation="auto", max_output_tokens=20)
    counts = []
    for first in range(len(turns)):
        messages = [items[0], *turns[first:], USER]
        counts.append(http.post("/tokenize", json={"messages": messages}).json()["count"])
    kept = next(count for count in counts if count <= 2048 - 20)
    assert answer.json()["usage"]["input_tokens"] == kept and answer.json()["truncation"] == "auto"


def test_embeddings_of_fewer_dimensions_and_of_nothing(http: httpx.Client) -> None:
    whole = post(http, "/v1/embeddings", normalize=False).json()["data"][0]["embedding"]
    cut = post(http, "/v1/embeddings", dimensions=16).json()["data"][0]["embedding"]
    norm = sum(x * x for x in whole[:16]) ** 0.5
    assert cut == pytest.approx([x / norm for x in whole[:16]], abs=1e-5)
    rows = post(http, "/v1/embeddings", input=["", " ", "a"]).json()["data"]
    assert rows[0]["embedding"] == pytest.approx(rows[1]["embedding"]) and rows[0]["embedding"] != rows[2]["embedding"]
