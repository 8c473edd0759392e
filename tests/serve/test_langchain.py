"""langchain-openai, unmodified."""

from __future__ import annotations

from typing import Any

import pytest
from server_process import ServerProcess

from qwench import LLM, SamplingParams

langchain_openai = pytest.importorskip("langchain_openai", reason="needs langchain-openai")

QUESTION = "Tell me a story about a fox."


@pytest.fixture(scope="module")
def model(server: ServerProcess) -> Any:
    return langchain_openai.ChatOpenAI(
        model="tiny", base_url=f"{server.url}/v1", api_key="none", temperature=0, max_tokens=30, stream_usage=True
    )


@pytest.fixture(scope="module")
def truth(llm: LLM) -> str:
    messages = [{"role": "user", "content": QUESTION}]
    return llm.chat(messages, SamplingParams(temperature=0, max_tokens=30))[0].outputs[0].text


def test_invoke(model: Any, truth: str) -> None:
    answer = model.invoke(QUESTION)
    assert answer.content == truth
    assert answer.usage_metadata["output_tokens"] == 30
    assert answer.response_metadata["finish_reason"] == "length"


def test_stream(model: Any, truth: str) -> None:
    chunks = list(model.stream(QUESTION))
    assert "".join(chunk.content for chunk in chunks) == truth
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == 30


def test_batch(model: Any, truth: str) -> None:
    assert [answer.content for answer in model.batch([QUESTION] * 3)] == [truth] * 3


def test_completions(server: ServerProcess, llm: LLM) -> None:
    model = langchain_openai.OpenAI(
        model="tiny", base_url=f"{server.url}/v1", api_key="none", temperature=0, max_tokens=10
    )
    expected = llm.generate("Once upon a time", SamplingParams(temperature=0, max_tokens=10))[0].outputs[0].text
    assert model.invoke("Once upon a time") == expected
