"""A model that thinks before it answers, behind both of OpenAI's interfaces, at the command line and in Python."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import ServerProcess
from tool_checkpoint import MESSAGES, NOW, WEATHER

from qwench import LLM, SamplingParams
from qwench.serve.protocol.openai.replies import ChatCompletion, ResponseObject

BUDGET = {"max_thinking_tokens": 6, "max_tokens": 24, "temperature": 0}


@pytest.fixture(scope="module")
def artifact(thinking_artifact: Path) -> Path:
    return thinking_artifact


@pytest.fixture(scope="module")
def server(thinking_server: ServerProcess) -> ServerProcess:
    return thinking_server


@pytest.fixture(scope="module")
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with server.client() as http:
        yield http


@pytest.fixture(scope="module")
def llm(artifact: Path) -> Iterator[LLM]:
    with LLM(artifact, num_threads=1) as llm:
        yield llm


@pytest.mark.parametrize(
    "wish",
    [
        {"reasoning_effort": "none"}, {"reasoning": {"effort": "none"}}, {"thinking": {"type": "disabled"}},
        {"think": False}, {"chat_template_kwargs": {"enable_thinking": False}},
    ],
    ids=str,
)  # fmt: skip
def test_not_to_think_holds_where_the_template_has_no_switch(http: httpx.Client, wish: dict[str, Any]) -> None:
    answer = http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 8, **wish})
    message = answer.json()["choices"][0]["message"]
    assert message["content"] and not message.get("reasoning_content") and "x-qwench-ignored" not in answer.headers
    response = http.post("/v1/responses", json={"input": MESSAGES, "max_output_tokens": 8, **wish}).json()
    assert [item["type"] for item in response["output"]] == ["message"]


def chat(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    """Whole and streamed: both are the same."""
    fields = {"messages": MESSAGES, **fields}
    answer = http.post("/v1/chat/completions", json=fields)
    assert answer.status_code == 200, answer.text
    whole = answer.json()
    ChatCompletion.model_validate(whole)
    message, added = whole["choices"][0]["message"], {"content": "", "reasoning_content": "", "reasoning": ""}
    calls: list[dict[str, Any]] = []
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    for line in http.post("/v1/chat/completions", json={**fields, **stream}).text.split("\n\n"):
        if not line.startswith("data: {"):
            continue
        chunk = json.loads(line.removeprefix("data: "))
        for choice in chunk["choices"]:
            for name in added:
                added[name] += choice["delta"].get(name, "")
            calls += [call for call in choice["delta"].get("tool_calls", ()) if "id" in call]
            last = choice
    assert added == {name: message.get(name) or "" for name in added}
    counts = "completion_tokens", "completion_tokens_details"
    assert [chunk["usage"][name] for name in counts] == [whole["usage"][name] for name in counts]
    assert len(calls) == len(message.get("tool_calls", ()))
    assert [last[name] for name in ("finish_reason", "stop_reason")] == [
        whole["choices"][0][name] for name in ("finish_reason", "stop_reason")
    ]
    return dict(whole)


def test_a_thought_and_an_answer(http: httpx.Client, llm: LLM) -> None:
    answer = chat(http, **BUDGET)
    [choice] = answer["choices"]
    assert choice["message"]["content"] and choice["message"]["reasoning_content"]
    params = SamplingParams(temperature=0, max_tokens=24, max_thinking_tokens=6)
    truth = llm.chat(MESSAGES, params)[0].outputs[0]
    assert (choice["message"]["content"], choice["message"]["reasoning"]) == (truth.text, truth.reasoning)
    assert choice["stop_reason"] is None and truth.num_reasoning_tokens == 6 + len(("\n", "</think>"))
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": truth.num_reasoning_tokens}
    assert answer["usage"]["completion_tokens"] == len(truth.token_ids)


def test_an_answer_that_ends_while_it_thinks_says_so(http: httpx.Client) -> None:
    [choice] = chat(http, max_tokens=5, temperature=0)["choices"]
    assert choice["message"]["content"] is None and choice["message"]["reasoning_content"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "thinking")


def test_no_thought_at_all(http: httpx.Client) -> None:
    answer = chat(http, **{**BUDGET, "max_thinking_tokens": 0})
    assert answer["choices"][0]["message"]["content"] and "reasoning" not in answer["choices"][0]["message"]


def test_a_form_is_that_of_the_answer(http: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    [choice] = chat(http, **{**BUDGET, "max_tokens": 60}, response_format=form)["choices"]
    assert json.loads(choice["message"]["content"])["color"] in ("red", "blue") and choice["message"]["reasoning"]


def test_calls_come_behind_the_thought(http: httpx.Client) -> None:
    fields = {**BUDGET, "max_tokens": 200, "tools": [WEATHER, NOW]}
    [choice] = chat(http, **fields, tool_choice="required", parallel_tool_calls=False)["choices"]
    assert choice["message"]["tool_calls"] and choice["message"]["reasoning"]
    assert choice["finish_reason"] == "tool_calls"
    call = '{"name": "now", "arguments": {}}'
    [choice] = chat(http, **fields, structured_outputs={"choice": [call]})["choices"]
    assert choice["message"]["tool_calls"] and choice["message"]["content"] is None and choice["message"]["reasoning"]


def test_log_probabilities_are_the_answers(http: httpx.Client) -> None:
    answer = chat(http, **BUDGET, logprobs=True)
    text = "".join(entry["token"] for entry in answer["choices"][0]["logprobs"]["content"])
    assert text.lstrip("\n") == answer["choices"][0]["message"]["content"]


def test_completions_are_text_as_the_model_writes_it(http: httpx.Client) -> None:
    body = {"prompt": "<|im_start|>assistant\n<think>\n", "max_tokens": 5, "max_thinking_tokens": 1, "temperature": 0}
    assert "</think>" not in http.post("/v1/completions", json=body).json()["choices"][0]["text"]


def test_budgets_that_can_not_be(http: httpx.Client) -> None:
    for budget in (-1, "some", 1.5, 1 << 40):
        answer = http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_thinking_tokens": budget})
        assert answer.status_code == 400 and "max_thinking_tokens" in answer.text


@pytest.mark.parametrize(
    "fields",
    [{"thinking_budget": 3}, {"reasoning_budget": "3"}, {"thinking": {"type": "enabled", "budget_tokens": 3}},
     {"reasoning": {"max_tokens": 3}}, {"thinking": {"budget_tokens": 9}, "max_thinking_tokens": 3}],
)  # fmt: skip
def test_budgets_as_other_clients_write_them(http: httpx.Client, fields: dict[str, Any]) -> None:
    plain = {"max_tokens": 20, "temperature": 0}
    expected = chat(http, **plain, max_thinking_tokens=3)["choices"]
    assert chat(http, **plain, **fields)["choices"] == expected
    body = {"input": MESSAGES, "max_output_tokens": 20, "temperature": 0, **fields}
    output = http.post("/v1/responses", json=body).json()["output"]
    assert output[0]["content"][0]["text"] == expected[0]["message"]["reasoning"]


def test_earlier_thoughts_are_taken_back(http: httpx.Client) -> None:
    """This template leaves them out, so they change nothing."""
    [choice] = chat(http, **BUDGET)["choices"]
    ask = {"role": "user", "content": "And in London?"}
    plain = {"role": "assistant", "content": choice["message"]["content"]}
    answers = [
        chat(http, messages=[*MESSAGES, turn, ask], **BUDGET)["choices"][0]["message"]
        for turn in (choice["message"], plain, {**plain, "thinking": "Hm."})
    ]
    assert answers[0] == answers[1] == answers[2]


def test_the_official_client(server: ServerProcess) -> None:
    openai = pytest.importorskip("openai", reason="the tests of real clients need openai")
    extra = {"extra_body": {"max_thinking_tokens": 6}, "temperature": 0}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=24, **extra)
        assert answer.choices[0].message.reasoning_content
        assert answer.usage.completion_tokens_details.reasoning_tokens == 8
        response = client.responses.create(model="tiny", input=MESSAGES, max_output_tokens=24, **extra)
        assert [item.type for item in response.output] == ["reasoning", "message"]
        assert response.output[0].content[0].text == answer.choices[0].message.reasoning_content
        assert response.output_text == answer.choices[0].message.content
        assert response.usage.output_tokens_details.reasoning_tokens == 8
        with client.responses.stream(model="tiny", input=MESSAGES, max_output_tokens=24, **extra) as stream:
            events = list(stream)
    output = events[-1].response.output
    assert [item.content[0].text for item in output] == [item.content[0].text for item in response.output]
    deltas = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    assert deltas == response.output[0].content[0].text
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds.index("reasoning_text.done") < kinds.index("output_text.delta")


def test_a_response_that_ends_while_it_thinks(http: httpx.Client) -> None:
    answer = http.post("/v1/responses", json={"input": "Hi", "max_output_tokens": 5}).json()
    ResponseObject.model_validate(answer)
    [item] = answer["output"]
    assert item["type"] == "reasoning" and item["status"] == answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}


def command(*arguments: str | Path, stdin: str = "") -> tuple[str, str]:
    run = [sys.executable, "-m", "qwench.cli.main", *map(str, arguments)]
    done = subprocess.run(run, input=stdin, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def test_the_command_line(artifact: Path, llm: LLM) -> None:
    """A pipe gets the answer alone."""
    options = ["--temperature", "0", "--max-new-tokens", "24", "--max-thinking-tokens", "6", "--threads", "1"]
    params = SamplingParams(temperature=0, max_tokens=24, max_thinking_tokens=6)
    truth = llm.chat([{"role": "user", "content": "Hi"}], params)[0].outputs[0]
    ran, talked = command("run", artifact, "-p", "Hi", *options), command("chat", artifact, *options, stdin="Hi")
    for stdout, stderr in (ran, talked):
        assert stdout == f"{truth.text}\n" and stderr.startswith(f"{truth.reasoning}\n\n")
    report = json.loads(command("run", artifact, "-p", "Hi", *options, "--json")[0])
    assert (report["text"], report["reasoning"]) == (truth.text, truth.reasoning)
    stdout, stderr = command("run", artifact, "-p", "Hi", "--max-new-tokens", "4")
    assert stdout == "\n" and "--max-thinking-tokens" in stderr
