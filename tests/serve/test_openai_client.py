"""The official client, unmodified, against the server; the truth is what LLM answers in this process."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from server_process import ServerProcess

from qwench import LLM, SamplingParams

openai = pytest.importorskip("openai", reason="the tests of real clients need openai")

MESSAGES = [{"role": "user", "content": "Tell me a story about a fox."}]


def chat_truth(llm: LLM, **params: Any) -> Any:
    return llm.chat(MESSAGES, SamplingParams(**{"temperature": 0, "max_tokens": 30, **params}))[0]


def test_chat(client: Any, llm: LLM) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0, max_completion_tokens=30)
    truth = chat_truth(llm)
    assert answer.object == "chat.completion" and answer.model == "tiny"
    assert answer.choices[0].message.content == truth.outputs[0].text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(truth.prompt_token_ids), 30)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 30


def test_an_answer_to_its_end(client: Any, llm: LLM) -> None:
    truth = chat_truth(llm, max_tokens=400)
    assert truth.outputs[0].finish_reason == "stop"
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0)
    assert answer.choices[0].message.content == truth.outputs[0].text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == len(truth.outputs[0].token_ids)


def test_a_chat_stream_is_the_whole_answer(client: Any, llm: LLM) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, max_tokens=30, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    truth = chat_truth(llm)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == truth.outputs[0].text
    assert [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason] == ["length"]
    assert all(c.usage is None for c in chunks[:-1]) and chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 30
    assert chunks[-1].usage.prompt_tokens == len(truth.prompt_token_ids)
    assert len({c.id for c in chunks}) == 1


def test_a_stream_without_usage(client: Any) -> None:
    chunks = list(client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=4, stream=True))
    assert all(chunk.choices for chunk in chunks)


def test_the_asynchronous_client(server: ServerProcess, llm: LLM) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            whole = await client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0, max_tokens=30)
            texts = []
            async for chunk in await client.chat.completions.create(
                model="tiny", messages=MESSAGES, temperature=0, max_tokens=30, stream=True
            ):
                texts.append(chunk.choices[0].delta.content or "")
            return [whole.choices[0].message.content, "".join(texts)]

    assert asyncio.run(ask()) == [chat_truth(llm).outputs[0].text] * 2


def test_completions_of_several_prompts(client: Any, llm: LLM) -> None:
    prompts = ["Once upon a time", "The old house"]
    answer = client.completions.create(model="tiny", prompt=prompts, temperature=0, max_tokens=12)
    truths = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=12))
    assert [choice.text for choice in answer.choices] == [truth.outputs[0].text for truth in truths]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage.prompt_tokens == sum(len(truth.prompt_token_ids) for truth in truths)
    assert answer.usage.completion_tokens == 24


def test_token_prompts_and_echo(client: Any, llm: LLM) -> None:
    ids = llm.text_engine.encode("Once upon a time")
    answer = client.completions.create(model="tiny", prompt=ids, temperature=0, max_tokens=5, echo=True)
    truth = llm.generate(ids, SamplingParams(temperature=0, max_tokens=5))[0].outputs[0].text
    assert answer.choices[0].text == "Once upon a time" + truth


def test_a_completion_stream_of_several_choices(client: Any, llm: LLM) -> None:
    prompts = ["Once upon a time", "The old house"]
    params = {"temperature": 0.8, "seed": 5, "max_tokens": 8, "n": 2}
    texts = [""] * 4
    for chunk in client.completions.create(model="tiny", prompt=prompts, stream=True, **params):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    truths = llm.generate(prompts, dataclasses.replace(llm.defaults.params, **params))
    assert texts == [output.text for truth in truths for output in truth.outputs]


def test_the_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "alias"]
    assert client.models.retrieve("alias").id == "alias"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


def test_another_model_is_not_found(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="gpt-5", messages=MESSAGES)
    assert raised.value.code == "model_not_found" and raised.value.param == "model"
