"""A compiled default model and one server over it, shared by the tests that don't break anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason='the server needs pip install "qwench[serve]"')
pytest.importorskip("httpx", reason="the tests of the server need httpx")

from server_process import ServerProcess, running_server, tiny_model
from tool_checkpoint import thinking_model, tool_model

from qwench import LLM


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("artifact") / "tiny")


@pytest.fixture(scope="session")
def llm(artifact: Path) -> Iterator[LLM]:
    """The same model in this process: the truth about its answers."""
    with LLM(artifact, num_threads=1) as llm:
        yield llm


@pytest.fixture(scope="session")
def server(artifact: Path) -> Iterator[ServerProcess]:
    with running_server(artifact, "--name", "tiny", "--name", "alias", "--threads", "1") as server:
        yield server


@pytest.fixture(scope="session")
def client(server: ServerProcess) -> Iterator[Any]:
    """The official client."""
    openai = pytest.importorskip("openai", reason="the tests of real clients need openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def tool_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Qwen2.5's: the template knows tools, and the tags of calls are tokens, not special ones."""
    return tool_model(tmp_path_factory.mktemp("tools"), has_tag_tokens=True)


@pytest.fixture(scope="session")
def tool_server(tool_artifact: Path) -> Iterator[ServerProcess]:
    with running_server(tool_artifact, "--name", "tiny", "--threads", "1") as server:
        yield server


@pytest.fixture(scope="session")
def thinking_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As QwQ's: the template opens a thought."""
    return thinking_model(tmp_path_factory.mktemp("thinking"))


@pytest.fixture(scope="session")
def thinking_server(thinking_artifact: Path) -> Iterator[ServerProcess]:
    with running_server(thinking_artifact, "--name", "tiny", "--threads", "1") as server:
        yield server
