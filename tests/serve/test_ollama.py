"""Ollama's routes with its own client, unmodified."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from server_process import ServerProcess, running_server
from tool_checkpoint import MESSAGES

from qwench import LLM, SamplingParams
from qwench.serve.protocol.ollama import replies

ollama = pytest.importorskip("ollama", reason="the tests of real clients need ollama")

STORY = [{"role": "user", "content": "Tell me a story about a fox."}]
OPTIONS = {"temperature": 0, "num_predict": 30, "num_ctx": 4096, "num_gpu": 1, "num_thread": 2}
KEY = "0123456789abcdef-a-good-key"


@pytest.fixture(scope="module")
def plain(server: ServerProcess) -> Any:
    return ollama.Client(server.url)


@pytest.fixture(scope="module")
def caller(tool_server: ServerProcess) -> Any:
    return ollama.Client(tool_server.url)


@pytest.fixture(scope="module")
def thinker(thinking_server: ServerProcess) -> Any:
    return ollama.Client(thinking_server.url)


def as_json(reply: Any) -> dict[str, Any]:
    return dict(reply.model_dump(exclude_unset=True))


def chat(client: Any, messages: Any = STORY, **fields: Any) -> Any:
    """Whole and streamed, which must be the same."""
    asked = {"model": "tiny", "messages": messages, "options": OPTIONS, "keep_alive": "5m", **fields}
    whole = client.chat(**asked)
    replies.OllamaChat.model_validate(json.loads(whole.model_dump_json(exclude_unset=True)) | calls_of(whole))
    chunks = list(client.chat(**asked, stream=True))
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    for name in ("content", "thinking"):
        added = "".join(getattr(chunk.message, name) or "" for chunk in chunks)
        assert added == (getattr(whole.message, name) or "")
    calls = [call for chunk in chunks for call in chunk.message.tool_calls or ()]
    assert calls == list(whole.message.tool_calls or ())
    check_end(whole, chunks[-1])
    return whole


def calls_of(whole: Any) -> dict[str, Any]:
    """The client's types leave out ids and places of calls."""
    message = json.loads(whole.message.model_dump_json(exclude_unset=True))
    for index, call in enumerate(message.get("tool_calls") or ()):
        call["id"], call["function"]["index"] = "x", index
    return {"message": message}


def generate(client: Any, prompt: str | None = "Tell me a story about a fox.", **fields: Any) -> Any:
    asked = {"model": "tiny", "prompt": prompt, "options": OPTIONS, **fields}
    whole = client.generate(**asked)
    replies.OllamaText.model_validate(as_json(whole))
    chunks = list(client.generate(**asked, stream=True))
    assert "".join(chunk.response for chunk in chunks) == whole.response
    assert "".join(chunk.thinking or "" for chunk in chunks) == (whole.thinking or "")
    assert chunks[-1].context == whole.context
    check_end(whole, chunks[-1])
    return whole


def check_end(whole: Any, last: Any) -> None:
    for name in ("done_reason", "prompt_eval_count", "eval_count"):
        assert getattr(whole, name) == getattr(last, name)
    for end in (whole, last):
        parts = end.load_duration + end.prompt_eval_duration + end.eval_duration
        assert end.eval_duration > 0 and parts <= end.total_duration + 2 < 60 * 10**9


def truth(llm: LLM, messages: Any = STORY, **params: Any) -> Any:
    return llm.chat(messages, SamplingParams(**{"temperature": 0, "max_tokens": 30, **params}))[0]


def test_chat(plain: Any, llm: LLM) -> None:
    answer, expected = chat(plain), truth(llm)
    assert answer.message.content == expected.outputs[0].text and answer.message.role == "assistant"
    assert (answer.done_reason, answer.eval_count) == ("length", 30) and answer.model == "tiny"
    assert answer.prompt_eval_count == len(expected.prompt_token_ids)
    to_the_end = chat(plain, options={"temperature": 0, "num_predict": -1})
    assert to_the_end.done_reason == "stop" and to_the_end.eval_count > 30
    stopped = chat(plain, options={**OPTIONS, "stop": [answer.message.content[20:28]]})
    assert stopped.message.content == answer.message.content[:20] and stopped.done_reason == "stop"
    told = [{"role": "system", "content": "Be brief."}, *STORY, answer.message, *STORY]
    again = [*told[:2], {"role": "assistant", "content": answer.message.content}, *STORY]
    assert chat(plain, told).message.content == truth(llm, again).outputs[0].text


def test_the_other_sampling_options(plain: Any, llm: LLM) -> None:
    options = {"temperature": 1.1, "seed": 7, "top_k": 9, "top_p": 0.8, "min_p": 0.02, "repeat_penalty": 1.2,
               "presence_penalty": 0.5, "frequency_penalty": 0.4, "num_predict": 20}  # fmt: skip
    expected = llm.chat(STORY, SamplingParams(
        temperature=1.1, seed=7, top_k=9, top_p=0.8, min_p=0.02, repetition_penalty=1.2, presence_penalty=0.5,
        frequency_penalty=0.4, max_tokens=20))[0]  # fmt: skip
    assert chat(plain, options=options).message.content == expected.outputs[0].text


def test_generate(plain: Any, llm: LLM) -> None:
    expected = truth(llm)
    answer = generate(plain)
    assert answer.response == expected.outputs[0].text
    assert answer.context == [*expected.prompt_token_ids, *expected.outputs[0].token_ids]
    system = [{"role": "system", "content": "Be brief."}, *STORY]
    assert generate(plain, system="Be brief.").response == truth(llm, system).outputs[0].text
    raw = generate(plain, "Once upon a time", raw=True)
    assert raw.response == llm.generate("Once upon a time", SamplingParams(temperature=0, max_tokens=30))[0].outputs[
        0
    ].text and raw.context is None  # fmt: skip
    with pytest.raises(ollama.ResponseError, match="can't fill in"):
        plain.generate("tiny", "a", suffix="b")


def test_a_context_is_gone_on_with(plain: Any, llm: LLM) -> None:
    """As if the whole conversation had been sent."""
    first = generate(plain, options={"temperature": 0})
    assert first.done_reason == "stop"
    told = [*STORY, {"role": "assistant", "content": first.response}, {"role": "user", "content": "Another one."}]
    expected = truth(llm, told)
    second = generate(plain, "Another one.", context=first.context)
    assert second.prompt_eval_count == len(expected.prompt_token_ids)
    assert second.response == expected.outputs[0].text


def test_only_to_load_it(plain: Any, server: ServerProcess) -> None:
    assert plain.generate("tiny").done_reason == plain.chat("tiny", []).done_reason == "load"
    assert plain.generate("tiny", keep_alive=0).done_reason == "unload"
    for path, reply in (("/api/chat", replies.OllamaChat), ("/api/generate", replies.OllamaText)):
        reply.model_validate(httpx.post(f"{server.url}{path}", json={"model": "tiny"}).json())


def test_tools(caller: Any, tool_server: ServerProcess) -> None:
    """A call given back as Ollama's documentation does it is the prompt that OpenAI's way would be. How calls are shown
    is in test_ollama_stream.py: nothing makes this model call a tool by itself."""
    call = {"name": "weather", "arguments": {"city": "Paris"}}
    told = [{"role": "assistant", "content": "", "tool_calls": [{"function": call}]},
            {"role": "tool", "tool_name": "weather", "content": "sunny"}]  # fmt: skip
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "weather", "description": "x", "parameters": schema}}
    answer = chat(caller, [*MESSAGES, *told], tools=[tool])
    written = {"type": "function", "id": "a", "function": {**call, "arguments": json.dumps(call["arguments"])}}
    openai = [*MESSAGES, {"role": "assistant", "tool_calls": [written]},
              {"role": "tool", "tool_call_id": "a", "content": "sunny"}]  # fmt: skip
    body = {"messages": openai, "tools": [tool], "temperature": 0, "max_tokens": 30}
    expected = httpx.post(f"{tool_server.url}/v1/chat/completions", json=body, timeout=60).json()
    assert answer.message.content == expected["choices"][0]["message"]["content"]
    assert answer.prompt_eval_count == expected["usage"]["prompt_tokens"]


def test_what_was_answered_comes_back_without_a_word(tool_server: ServerProcess) -> None:
    """The raw message, with the ids and places that the client leaves out."""
    call = {"id": "call_1", "function": {"index": 0, "name": "weather", "arguments": {"city": "Paris"}}}
    told = [*MESSAGES, {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": [call]},
            {"role": "tool", "tool_name": "weather", "tool_call_id": "call_1", "content": "sunny"}]  # fmt: skip
    body = {"model": "tiny", "messages": told, "stream": False, "options": OPTIONS, "keep_alive": -1}
    answer = httpx.post(f"{tool_server.url}/api/chat", json=body, timeout=60)
    assert answer.status_code == 200 and "x-qwench-ignored" not in answer.headers, answer.headers


def test_thinking(thinker: Any, thinking_artifact: Path) -> None:
    options = {"temperature": 0, "num_predict": 24, "max_thinking_tokens": 6}
    with LLM(thinking_artifact, num_threads=1) as llm:
        expected = truth(llm, MESSAGES, max_tokens=24, max_thinking_tokens=6).outputs[0]
    answer = chat(thinker, MESSAGES, options=options, think=True)
    assert (answer.message.thinking, answer.message.content) == (expected.reasoning, expected.text)
    one = generate(thinker, MESSAGES[0]["content"], options=options, think="low")
    assert (one.thinking, one.response) == (expected.reasoning, expected.text)
    without = chat(thinker, MESSAGES, options=options, think=False)
    assert without.message.content and not without.message.thinking
    again = [*MESSAGES, answer.message, *STORY]
    assert chat(thinker, again, options=options).message.thinking


def test_forms(caller: Any) -> None:
    schema = {"type": "object", "properties": {"color": {"enum": ["red"]}}, "required": ["color"],
              "additionalProperties": False}  # fmt: skip
    options = {"temperature": 0, "num_predict": 100}
    assert json.loads(chat(caller, format=schema, options=options).message.content) == {"color": "red"}
    assert json.loads(generate(caller, format={"enum": ["yes"]}, options=options).response) == "yes"
    assert chat(caller, format="json", options=options).message.content.startswith("{")
    assert generate(caller, format="").response


def test_logprobs(plain: Any, llm: LLM) -> None:
    whole = plain.chat("tiny", STORY, options=OPTIONS, logprobs=True, top_logprobs=2)
    chunks = list(plain.chat("tiny", STORY, options=OPTIONS, logprobs=True, top_logprobs=2, stream=True))
    [expected] = llm.chat(STORY, SamplingParams(temperature=0, max_tokens=30, logprobs=2))[0].outputs
    assert [entry.logprob for entry in whole.logprobs] == [entry.logprob for entry in expected.logprobs]
    assert [entry for chunk in chunks for entry in chunk.logprobs or ()] == list(whole.logprobs)
    assert len(whole.logprobs[0].top_logprobs) == 2


def test_old_turns_give_way(plain: Any) -> None:
    turns = [{"role": role, "content": "fox " * 150} for _ in range(10) for role in ("user", "assistant")]
    answer = chat(plain, [*turns, *STORY], options={"temperature": 0, "num_predict": 20})
    assert 1500 < answer.prompt_eval_count <= 2028
    assert generate(plain, "fox " * 4000, raw=True).prompt_eval_count == 2018
    with pytest.raises(ollama.ResponseError, match="maximum context length"):
        plain._request(ollama.ChatResponse, "POST", "/api/chat", json={
            "model": "tiny", "messages": [*turns, *STORY], "truncate": False, "stream": False})  # fmt: skip


def test_embeddings(plain: Any, llm: LLM) -> None:
    texts = ["a quick fox", "an old house"]
    expected = llm.embed(texts, normalize=True)
    answer = plain.embed("tiny", texts)
    assert np.allclose(answer.embeddings, expected, atol=1e-6) and answer.prompt_eval_count > 4
    assert np.allclose(plain.embed("tiny", texts[0]).embeddings, expected[:1], atol=1e-6)
    assert len(plain.embed("tiny", texts, dimensions=16).embeddings[1]) == 16
    assert plain.embed("tiny", []).embeddings == [] and plain.embeddings("tiny", "").embedding == []
    assert np.allclose(plain.embeddings("tiny", texts[1]).embedding, llm.embed(texts[1:])[0], atol=1e-6)
    assert plain.embed("tiny", "fox " * 3000).prompt_eval_count == 2048
    with pytest.raises(ollama.ResponseError, match="context"):
        plain.embed("tiny", "fox " * 3000, truncate=False)


def test_what_there_is(plain: Any, caller: Any, thinker: Any, server: ServerProcess) -> None:
    names = [model.model for model in plain.list().models]
    assert names == ["tiny:latest", "alias:latest"] and [m.model for m in plain.ps().models] == names
    assert chat(plain, model="Tiny:latest", options={"num_predict": 1, "temperature": 0}).model == "Tiny:latest"
    shown = plain.show("tiny:latest")
    assert shown.modelinfo["general.architecture"] == "qwen2" and shown.modelinfo["qwen2.context_length"] == 2048
    assert shown.details.quantization_level == "INT8" and shown.capabilities == ["completion"] and shown.template
    assert caller.show("tiny").capabilities == ["completion", "tools"]
    assert caller.ps().models[0].context_length == 2048
    assert thinker.show("tiny").capabilities == ["completion", "tools", "thinking"]
    assert plain.pull("tiny").status == "success"
    assert [each.status for each in plain.pull("tiny", stream=True)] == ["pulling manifest", "success"]
    for path, reply in (("tags", replies.Tags), ("ps", replies.Running), ("version", replies.OllamaVersion)):
        answer = httpx.get(f"{server.url}/api/{path}")
        reply.model_validate(answer.json())
        assert httpx.head(f"{server.url}/api/{path}").status_code == 200
    replies.ShownModel.model_validate(httpx.post(f"{server.url}/api/show", json={"name": "tiny"}).json())
    assert httpx.head(server.url).status_code == 200


def test_errors(plain: Any, server: ServerProcess) -> None:
    wrongs = (
        lambda: plain.chat("other", STORY), lambda: plain.show("other"), lambda: plain.pull("other"),
        lambda: next(plain.generate("other", "a", stream=True)), lambda: plain.embed("other", "a"),
    )  # fmt: skip
    for wrong in wrongs:
        with pytest.raises(ollama.ResponseError, match="not found") as refusal:
            wrong()
        assert refusal.value.status_code == 404
    bad: list[dict[str, Any]] = [
        {"messages": [{**STORY[0], "images": ["AAAA"]}]}, {"options": {"temperature": -1}}, {"format": "xml"},
        {"format": {"type": "wizard"}}, {"think": "so"}, {"messages": "x"}, {"messages": [{"role": "wizard"}]},
        {"template": "{{ .Prompt }}"}, {"logprobs": True, "top_logprobs": 21}, {"options": {"num_predict": 1.5}},
    ]  # fmt: skip
    for fields in bad:
        answer = httpx.post(f"{server.url}/api/chat", json={"model": "tiny", "messages": STORY, **fields})
        assert answer.status_code == 400 and replies.OllamaError.model_validate(answer.json()), fields
    for path, method, status in (("chat", "GET", 405), ("nowhere", "POST", 404), ("delete", "DELETE", 404)):
        answer = httpx.request(method, f"{server.url}/api/{path}")
        assert answer.status_code == status and replies.OllamaError.model_validate(answer.json())
    with pytest.raises(ollama.ResponseError, match="raw"):
        plain.generate("tiny", "a", raw=True, system="b")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_as_in_its_documentation(server: ServerProcess) -> None:
    """Which doesn't say that it sends JSON; a page of the web must, and so asks first."""
    body = '{"model": "tiny", "prompt": "Why is the sky blue?", "stream": false, "options": {"num_predict": 3}}'
    command = ["curl", "-sS", f"{server.url}/api/generate", "-d", body]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(run.stdout)["done"] is True
    for name in ("Origin: https://evil.example", "Sec-Fetch-Site: cross-site", "Referer: https://evil.example"):
        run = subprocess.run([*command, "-H", name], capture_output=True, text=True, timeout=60, check=True)
        assert "application/json" in json.loads(run.stdout)["error"]


def test_keys(artifact: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    with running_server(artifact, "--name", "tiny", "--threads", "1", "--api-key-file", str(keys)) as server:
        with pytest.raises(ollama.ResponseError) as refusal:
            ollama.Client(server.url).list()
        assert refusal.value.status_code == 401 and "API key" in refusal.value.error
        good = ollama.Client(server.url, headers={"Authorization": f"Bearer {KEY}"})
        assert good.list().models and good.generate("tiny", "a", options={"num_predict": 1}).done
