"""litellm and instructor, unmodified. Their pins contradict those of the other clients (instructor 1.17 wants a jiter
below 0.15 and so an older openai), so they need an environment of their own: `pip install litellm instructor` beside
qwench's dev extra, whatever pip says of conflicts."""

from __future__ import annotations

import os
from typing import Any, Literal

import pytest
from server_process import ServerProcess
from tool_checkpoint import WEATHER

openai = pytest.importorskip("openai", reason="the tests of real clients need openai")
pydantic = pytest.importorskip("pydantic")
MESSAGES = [{"role": "user", "content": "Hello"}]


class Animal(pydantic.BaseModel):
    kind: Literal["fox", "owl"]
    age: Literal[1, 2]


@pytest.fixture(scope="module")
def litellm() -> Any:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks its makers' server
    return pytest.importorskip("litellm", reason="needs a peer: litellm, which wants an older openai")


def options(server: ServerProcess) -> dict[str, Any]:
    return {"api_base": f"{server.url}/v1", "api_key": "none", "max_tokens": 5, "temperature": 0}


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "lm_studio"])
def test_litellm_answers(litellm: Any, tool_server: ServerProcess, provider: str) -> None:
    asked = {"messages": MESSAGES, **options(tool_server)}
    whole = litellm.completion(model=f"{provider}/tiny", **asked).choices[0].message.content
    chunks = list(litellm.completion(model=f"{provider}/tiny", stream=True, **asked))
    assert whole and "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


def test_litellm_gives_calls_back(litellm: Any, tool_server: ServerProcess) -> None:
    asked = {"model": "openai/tiny", "tools": [WEATHER], **options(tool_server)}
    message = (
        litellm.completion(messages=MESSAGES, **{**asked, "tool_choice": "required", "max_tokens": 100})
        .choices[0]
        .message
    )
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "name": "weather", "content": "sunny"}
    answer = litellm.completion(messages=[*MESSAGES, message.model_dump(), result], **asked)
    assert answer.choices[0].message.content


def test_litellm_elsewhere(litellm: Any, tool_server: ServerProcess) -> None:
    asked = options(tool_server)
    keys = {name: asked[name] for name in ("api_base", "api_key")}
    assert len(litellm.embedding(model="openai/tiny", input=["a", ""], **keys).data) == 2
    response = litellm.responses(
        model="openai/tiny", input="Hello", reasoning={"effort": "low"}, max_output_tokens=5, **keys
    )
    assert response.output[0].content[0].text


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT"])
def test_instructor(tool_server: ServerProcess, mode: str) -> None:
    instructor = pytest.importorskip("instructor", reason="needs a peer: instructor, which wants an older jiter")
    with openai.OpenAI(base_url=f"{tool_server.url}/v1", api_key="none", max_retries=0) as plain:
        client = instructor.from_openai(plain, mode=instructor.Mode[mode])
        answer = client.chat.completions.create(
            model="tiny", messages=MESSAGES, response_model=Animal, max_retries=0, max_tokens=200, temperature=0
        )
    assert isinstance(answer, Animal)
