"""/v1/embeddings: what LLM.embed gives, in each form that clients ask for."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import pytest
from server_process import ServerProcess, wait_for

from qwench import LLM

TEXTS = ["Once upon a time there was a fox.", "The old house", "a"]


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_texts(client: Any, llm: LLM, pooling: str, encoding: str) -> None:
    answer = client.embeddings.create(
        model="tiny", input=TEXTS, encoding_format=encoding, extra_body={"pooling": pooling}
    )
    expected = llm.embed(TEXTS, pooling=pooling)  # type: ignore[arg-type]
    rows = [entry.embedding for entry in answer.data]
    if encoding == "base64":
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
    np.testing.assert_allclose(np.array(rows, np.float32), expected, rtol=0, atol=1e-6)
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    assert answer.usage.prompt_tokens == sum(len(llm.text_engine.encode(text)) for text in TEXTS)


def test_the_clients_own_default(client: Any, llm: LLM) -> None:
    """It asks for base64 and decodes it by itself."""
    [entry] = client.embeddings.create(model="tiny", input=TEXTS[0]).data
    np.testing.assert_allclose(entry.embedding, llm.embed(TEXTS[0])[0], rtol=0, atol=1e-6)
    assert np.linalg.norm(entry.embedding) == pytest.approx(1, abs=1e-5)


def test_tokens_and_length(client: Any, llm: LLM) -> None:
    ids = llm.text_engine.encode(TEXTS[0])
    rows = client.embeddings.create(model="tiny", input=[ids, [5]], extra_body={"normalize": False}).data
    expected = llm.embed([ids, [5]], normalize=False)
    np.testing.assert_allclose(np.array([row.embedding for row in rows]), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dimensions", [1, 32, 100])
def test_fewer_dimensions(client: Any, llm: LLM, dimensions: int) -> None:
    rows = client.embeddings.create(model="tiny", input=TEXTS, dimensions=dimensions).data
    expected = llm.embed(TEXTS, dimensions=dimensions)
    np.testing.assert_allclose(np.array([row.embedding for row in rows]), expected, rtol=0, atol=1e-6)


def test_more_inputs_than_run_at_once_beside_answers(client: Any, server: ServerProcess, llm: LLM) -> None:
    texts = [f"{i} foxes in the old house" for i in range(50)]
    story = {"prompt": "Once upon a time", "max_tokens": 60, "stream": True, "ignore_eos": True}
    with server.client() as http, http.stream("POST", "/v1/completions", json=story) as stream:
        rows = [entry.embedding for entry in client.embeddings.create(model="tiny", input=texts).data]
        assert stream.read().endswith(b"[DONE]\n\n")
    np.testing.assert_allclose(np.array(rows), llm.embed(texts), rtol=0, atol=1e-6)
    wait_for(lambda: server.metric("qwench_answers_open") == server.metric("qwench_kv_blocks_used") == 0)


def test_langchain(server: ServerProcess, llm: LLM) -> None:
    langchain_openai = pytest.importorskip("langchain_openai", reason="needs langchain-openai")
    model = langchain_openai.OpenAIEmbeddings(
        model="tiny", base_url=f"{server.url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    np.testing.assert_allclose(model.embed_documents(TEXTS), llm.embed(TEXTS), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        {}, {"input": []}, {"input": [[]]}, {"input": [3000]}, {"input": ["a"] * 2049},
        {"input": "a", "encoding_format": "int8"}, {"input": "a", "dimensions": 6400}, {"input": "a", "pooling": "max"},
        {"input": "fox " * 3000}, {"input": "fox " * 50_000}, {"input": [5] * 2049}, {"input": 5},
    ],
    ids=lambda body: str(body)[:30],
)  # fmt: skip
def test_what_can_not_be_embedded(server: ServerProcess, body: dict[str, Any]) -> None:
    answer = httpx.post(f"{server.url}/v1/embeddings", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["message"]
