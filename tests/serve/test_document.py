"""The OpenAPI document: answers are as it says, and nothing that schemathesis makes of it breaks the server.

The long run is in tests/slow.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel
from schemathesis_run import run_schemathesis
from server_process import ServerProcess, running_server, short_model
from tool_checkpoint import NOW, WEATHER

from qwench.serve.anthropic.routes import BODY_PATHS as MESSAGE_PATHS
from qwench.serve.ollama.routes import BODY_PATHS as OLLAMA_PATHS
from qwench.serve.openai.routes import BODY_PATHS
from qwench.serve.pooling.routes import ANSWER_PATHS as POOLING_PATHS
from qwench.serve.protocol.anthropic import replies as messages_replies
from qwench.serve.protocol.ollama import replies as ollama_replies
from qwench.serve.protocol.openai import replies
from qwench.serve.protocol.state_replies import Status

MESSAGES = [{"role": "user", "content": "Tell me a story about a fox."}]
GOOD: list[tuple[str, dict[str, Any], type[BaseModel]]] = [
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 5}, replies.ChatCompletion),
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 5, "logprobs": True, "top_logprobs": 2, "n": 2},
     replies.ChatCompletion),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 5, "echo": True}, replies.Completion),
    ("/v1/completions", {"prompt": [5, 6], "max_tokens": 5, "logprobs": 3, "stop": ["a"]}, replies.Completion),
    ("/v1/responses", {"input": "Tell me", "max_output_tokens": 5}, replies.ResponseObject),
    ("/v1/responses", {"input": "Tell me", "top_logprobs": 2, "instructions": "x"}, replies.ResponseObject),
    ("/v1/completions", {"prompt": "a fox", "max_tokens": 0, "echo": True, "logprobs": 2}, replies.Completion),
    ("/v1/embeddings", {"input": ["a", "b"]}, replies.EmbeddingList),
    ("/v1/embeddings", {"input": "a", "encoding_format": "base64"}, replies.EmbeddingList),
    ("/tokenize", {"prompt": "a fox"}, replies.Tokens),
    ("/tokenize", {"prompt": "a fox", "return_token_strs": True}, replies.Tokens),
    ("/detokenize", {"tokens": [5, 6]}, replies.Text),
    ("/v1/messages", {"messages": MESSAGES, "max_tokens": 5}, messages_replies.Message),
    ("/api/chat", {"messages": MESSAGES, "options": {"num_predict": 5}, "stream": False}, ollama_replies.OllamaChat),
    ("/api/generate", {"prompt": "a", "options": {"num_predict": 5}, "stream": False}, ollama_replies.OllamaText),
    ("/api/embed", {"input": ["a", "b"]}, ollama_replies.OllamaEmbeddings),
    ("/api/embeddings", {"prompt": "a"}, ollama_replies.OllamaEmbedding),
    ("/api/show", {"model": "tiny"}, ollama_replies.ShownModel),
    ("/api/pull", {"model": "tiny", "stream": False}, ollama_replies.PullStatus),
    ("/v1/messages/count_tokens", {"messages": MESSAGES}, messages_replies.TokenCount),
]  # fmt: skip


@pytest.fixture(scope="module")
def document(server: ServerProcess) -> dict[str, Any]:
    return dict(httpx.get(f"{server.url}/openapi.json", timeout=60).json())  # made for the first to ask


@pytest.mark.parametrize(("path", "body", "reply"), GOOD, ids=lambda value: str(value)[:40])
def test_good_answers_are_as_documented(
    server: ServerProcess, document: dict[str, Any], path: str, body: dict[str, Any], reply: type[BaseModel]
) -> None:
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    reply.model_validate(answer.json())
    schema = document["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": f"#/components/schemas/{reply.__name__}"}


@pytest.mark.parametrize("number", [1, 2])
def test_calls_are_as_documented(tool_server: ServerProcess, number: int) -> None:
    flat = [{"type": "function", **tool["function"]} for tool in (WEATHER, NOW)][:number]
    chat = {"messages": MESSAGES, "tools": [WEATHER, NOW][:number], "tool_choice": "required", "max_tokens": 400}
    response = {"input": MESSAGES, "tools": flat, "tool_choice": "required", "max_output_tokens": 400}
    with tool_server.client() as http:
        answer = replies.ChatCompletion.model_validate(http.post("/v1/chat/completions", json=chat).json())
        assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.tool_calls
        made = replies.ResponseObject.model_validate(http.post("/v1/responses", json=response).json())
        assert any(item.type == "function_call" for item in made.output)


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/v1/models/tiny"])
def test_what_can_be_got_is_as_documented(server: ServerProcess, path: str) -> None:
    names = {"/v1/models": replies.ModelList, "/v1/models/tiny": replies.ModelEntry}
    names.get(path, Status).model_validate(httpx.get(f"{server.url}{path}").json())


def test_every_status_that_is_documented_has_a_reason(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            statuses = set(operation["responses"])
            assert statuses >= {"200", "421", "500"} and "422" not in statuses
            assert ("401" in statuses) == (path not in ("/health", "/ready"))
            assert ("429" in statuses) == (path in BODY_PATHS | POOLING_PATHS | MESSAGE_PATHS | OLLAMA_PATHS)


@pytest.fixture(scope="module")
def short_context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running_server(short_model(tmp_path_factory.mktemp("short") / "tiny"), "--threads", "1") as server:
        yield server


def test_schemathesis(short_context: ServerProcess, tmp_path: Path) -> None:
    summary = run_schemathesis(short_context, tmp_path, phases="fuzzing", max_examples=4)
    print(summary)
    assert short_context.metric("qwench_engine_restarts_total") == 0
