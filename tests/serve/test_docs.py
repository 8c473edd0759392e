"""The examples in docs/serving.md and README.md, run as they are printed, but for the port."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from field_document import table

from qwench.serve.protocol.anthropic.messages import MessagesRequest
from qwench.serve.protocol.ollama.requests import OllamaChatRequest, OllamaEmbedRequest, OllamaGenerateRequest
from qwench.serve.protocol.openai.chat import ChatRequest
from qwench.serve.protocol.openai.completions import CompletionRequest
from qwench.serve.protocol.openai.embeddings import EmbeddingRequest
from qwench.serve.protocol.openai.responses import ResponsesRequest
from qwench.serve.protocol.openai.tokens import TokenizeRequest

ROOT = Path(__file__).parents[2]
TEXT, README = (ROOT / "docs" / "serving.md").read_text(), (ROOT / "README.md").read_text()
CURL = re.compile(r"^    (curl (?:.|\n(?=    ))+)", re.MULTILINE)
CURLS = CURL.findall(TEXT) + CURL.findall(README)
BODIES = (
    ChatRequest, CompletionRequest, ResponsesRequest, EmbeddingRequest, TokenizeRequest, MessagesRequest,
    OllamaChatRequest, OllamaGenerateRequest, OllamaEmbedRequest,
)  # fmt: skip
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def at(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Code for a server of the tests, one whose model knows tools where they are asked for."""

    def place(code: str) -> str:
        server = request.getfixturevalue("tool_server" if '"tools"' in code or "tools=" in code else "server")
        return code.replace("http://localhost:8000", server.url)

    return place


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("command", CURLS, ids=lambda command: re.search(r"8000(\S+)", command)[1])
def test_curl(at: Callable[[str], str], command: str) -> None:
    run = subprocess.run(["sh", "-c", at(f"{command} -sS --fail")], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    if '"stream": true' in command:
        assert run.stdout.endswith(("data: [DONE]\n\n", 'data: {"type":"message_stop"}\n\n'))
    elif "/metrics" in command:
        assert "qwench_requests_running" in run.stdout
    elif "/api/chat" in command:
        assert json.loads(run.stdout.splitlines()[-1])["done"]
    else:
        assert "error" not in json.loads(run.stdout) or json.loads(run.stdout)["error"] is None


@pytest.mark.parametrize("code", PYTHON)
def test_python(at: Callable[[str], str], code: str) -> None:
    pytest.importorskip("openai", reason="the example needs openai")
    run = subprocess.run([sys.executable, "-c", at(code)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and len(run.stdout) > 20, run.stderr


def test_the_table_of_fields_is_the_one_that_is_gone_by() -> None:
    assert table() in TEXT, "put into docs/serving.md what `python tests/serve/field_document.py` prints"


def test_every_field_of_answers_is_listed() -> None:
    """Those that are honoured, by their names."""
    for body in BODIES:
        for name, field in body.model_fields.items():
            assert re.search(rf"`{field.alias or name}\b", TEXT), f"{body.__name__}.{name}"


def test_there_are_examples() -> None:
    assert len(CURLS) >= 9 and len(PYTHON) == 2


def test_every_option_it_names_exists() -> None:
    """Those of the server, of the tool that puts load on one, and of what prepares models and prefixes."""
    shown = ""
    for command in ("serve", "run", "bench-serve", "prefix save", "compile", "plan"):
        command_line = [sys.executable, "-m", "qwench.cli.main", *command.split(), "--help"]
        shown += subprocess.run(command_line, capture_output=True, text=True, check=True).stdout
    for option in set(re.findall(r"`(--[a-z-]+)", TEXT)):
        assert re.search(rf"{option}\b", shown), option
