"""/v1/rerank, /v1/score, /v1/classify and /v1/pooling: what LLM gives, in the shapes that clients ask for."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from server_process import MODEL, ServerProcess, running_server

from qwench import LLM, compile_checkpoint
from qwench.serve.protocol import pooling

QUERY, DOCUMENTS = "Where do foxes live?", ["In dens.", "On Mars, they say.", "12 + 30 = 42", "In dens."]
TEXTS = ["Once upon a time there was a fox.", "The old house", "a"]


REPLIES = {"rerank": pooling.Ranking, "score": pooling.ScoreList, "classify": pooling.ClassList,
           "pooling": pooling.PoolingList}  # fmt: skip


def classifier(folder: Path, labels: list[str], kind: str = "ForSequenceClassification") -> Path:
    """The default model's body under a random head, compiled."""
    source = folder / "source"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).write_bytes((MODEL / name).read_bytes())
    config = json.loads((MODEL / "config.json").read_text())
    names = {str(i): label for i, label in enumerate(labels)}
    changed = {"architectures": [f"Qwen2{kind}"], "id2label": names, "max_position_embeddings": 128}
    (source / "config.json").write_text(json.dumps(config | changed))
    tensors = load_file(MODEL / "model.safetensors")
    tensors.pop("lm_head.weight", None)
    weights = np.random.default_rng(0).standard_normal((len(labels), config["hidden_size"])) * 0.05
    tensors["score.weight"] = weights.astype(ml_dtypes.bfloat16)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    return compile_checkpoint(source, folder / "artifact").path


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, LLM]]:
    artifact = classifier(tmp_path_factory.mktemp("reranker"), ["relevant"])
    with running_server(artifact, "--name", "ranker", "--threads", "1") as server, LLM(artifact, num_threads=1) as llm:
        yield server, llm


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, LLM]]:
    artifact = classifier(tmp_path_factory.mktemp("tagger"), ["a", "b", "c"], "ForTokenClassification")
    with running_server(artifact, "--threads", "1") as server, LLM(artifact, num_threads=1) as llm:
        yield server, llm


def post(server: ServerProcess, path: str, **body: Any) -> dict[str, Any]:
    answer = httpx.post(server.url + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    REPLIES[path.rpartition("/")[2]].model_validate(result)
    return result


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_rerank(reranker: tuple[ServerProcess, LLM], path: str) -> None:
    server, llm = reranker
    expected = llm.score(QUERY, DOCUMENTS)
    answer = post(server, path, model="ranker", query=QUERY, documents=DOCUMENTS)
    assert set(answer) == {"id", "model", "results", "usage"} and answer["model"] == "ranker"
    order = [entry["index"] for entry in answer["results"]]
    assert order == sorted(range(4), key=lambda i: (-expected[i], i))  # equal ones in the order in which they came
    for entry in answer["results"]:
        assert entry["relevance_score"] == pytest.approx(float(expected[entry["index"]]), abs=1e-6)
        assert entry["document"] == {"text": DOCUMENTS[entry["index"]]}
    assert answer["usage"]["total_tokens"] == sum(len(llm.tokenizer.encode_pair(QUERY, d)) for d in DOCUMENTS)
    short = post(server, path, query=QUERY, documents=[{"text": d} for d in DOCUMENTS], top_n=2, return_documents=False)
    assert [entry["index"] for entry in short["results"]] == order[:2] and "document" not in short["results"][0]


def test_coheres_client(reranker: tuple[ServerProcess, LLM]) -> None:
    cohere = pytest.importorskip("cohere", reason="the test of a real client needs cohere")
    server, llm = reranker
    client = cohere.ClientV2(api_key="none", base_url=server.url)
    answer = client.rerank(model="ranker", query=QUERY, documents=DOCUMENTS, top_n=3)
    expected = np.sort(llm.score(QUERY, DOCUMENTS))[::-1][:3]
    np.testing.assert_allclose([entry.relevance_score for entry in answer.results], expected, atol=1e-6)


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
def test_score(reranker: tuple[ServerProcess, LLM], path: str) -> None:
    server, llm = reranker
    answer = post(server, path, text_1=QUERY, text_2=DOCUMENTS)
    assert [entry["object"] for entry in answer["data"]] == ["score"] * 4 and answer["object"] == "list"
    got = [entry["score"] for entry in answer["data"]]
    np.testing.assert_allclose(got, llm.score(QUERY, DOCUMENTS), atol=1e-6)
    raw = post(server, path, text_1=[QUERY, "a"], text_2=DOCUMENTS[:2], use_activation=False)
    expected = [llm.score(q, d, activation=False)[0] for q, d in zip([QUERY, "a"], DOCUMENTS)]
    np.testing.assert_allclose([entry["score"] for entry in raw["data"]], expected, atol=1e-6)


def test_scores_of_a_model_without_a_head_are_cosines(server: ServerProcess, llm: LLM) -> None:
    answer = post(server, "/v1/score", text_1=QUERY, text_2=DOCUMENTS)
    got = [entry["score"] for entry in answer["data"]]
    np.testing.assert_allclose(got, llm.score(QUERY, DOCUMENTS), atol=1e-5)


@pytest.mark.parametrize("path", ["/v1/classify", "/classify"])
def test_classify(reranker: tuple[ServerProcess, LLM], path: str) -> None:
    server, llm = reranker
    answer = post(server, path, input=TEXTS)
    expected = llm.classify(TEXTS)
    for i, entry in enumerate(answer["data"]):
        assert (entry["index"], entry["label"], entry["num_classes"]) == (i, "relevant", 1)
        np.testing.assert_allclose(entry["probs"], expected[i], atol=1e-6)
    raw = post(server, path, input=llm.text_engine.encode(TEXTS[0]), use_activation=False)
    np.testing.assert_allclose(raw["data"][0]["probs"], llm.classify(TEXTS[0], activation=False)[0], atol=1e-6)


def test_pooling_of_tokens(tagger: tuple[ServerProcess, LLM]) -> None:
    server, llm = tagger
    expected = llm.classify_tokens(TEXTS, activation=False)
    for encoding in ("float", "base64"):
        answer = post(server, "/v1/pooling", input=TEXTS, encoding_format=encoding)
        for entry, rows in zip(answer["data"], expected, strict=True):
            assert entry["object"] == "pooling"
            got = entry["data"]
            if encoding == "base64":
                got = np.frombuffer(base64.b64decode(got), "<f4").reshape(-1, 3)
            np.testing.assert_allclose(got, rows, atol=1e-5)
    shares = post(server, "/pooling", input=TEXTS[0], use_activation=True)["data"][0]["data"]
    np.testing.assert_allclose(np.sum(shares, axis=1), 1, atol=1e-5)


def test_pooling_of_a_language_model(server: ServerProcess, llm: LLM) -> None:
    [one] = post(server, "/v1/pooling", input=TEXTS[0])["data"]
    assert np.array(one["data"]).shape[0] == len(llm.text_engine.encode(TEXTS[0]))
    np.testing.assert_allclose(one["data"][-1], llm.embed(TEXTS[0], normalize=False)[0], rtol=1e-4, atol=1e-5)
    [short] = post(server, "/v1/pooling", input=TEXTS[0], task="embed", dimensions=16)["data"]
    np.testing.assert_allclose(short["data"], llm.embed(TEXTS[0], dimensions=16)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v1/classify", {"input": "a"}, "this model's head is 'causal_lm'"),
        ("/v1/pooling", {"input": "a", "task": "classify"}, "needs another head than this model's, 'causal_lm'"),
        ("/v1/pooling", {"input": "a", "dimensions": 10**6}, "dimensions is 1000000"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1 has 2 texts and text_2 1"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [{"title": "b"}]}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
        ("/v1/rerank", {"query": "a", "documents": ["fox " * 3000]}, "context"),
        ("/v1/embeddings", {"input": [5], "prompt_name": "query"}, "goes before texts"),
        ("/v1/embeddings", {"input": "a", "prompt_name": "query"}, "there is no prompt 'query'"),
    ],
)
def test_what_is_refused(server: ServerProcess, path: str, body: dict[str, Any], says: str) -> None:
    answer = httpx.post(server.url + path, json=body, timeout=60)
    assert answer.status_code == 400 and says in answer.json()["error"]["message"], answer.text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_a_model_without_a_language_head_answers_nothing(reranker: tuple[ServerProcess, LLM], path: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {"prompt": "Hi"}
    body = {"input": "Hi"} if "responses" in path else body
    answer = httpx.post(reranker[0].url + path, json=body, timeout=60)
    assert answer.status_code == 400 and "no language model's head" in answer.json()["error"]["message"], answer.text
