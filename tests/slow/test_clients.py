"""Clients whose pins contradict those of the others, or that bring much with them: unmodified, each in an environment
of its own that `make tools` installs. Their programs are in client_programs.py.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwench import LLM, SamplingParams

pytest.importorskip("fastapi", reason='the server needs pip install "qwench[serve]"')
pytest.importorskip("httpx", reason="the tests of the server need httpx")

from server_process import MODEL, ServerProcess, running_server, tiny_model

TOOLS_FOLDER = Path(__file__).parents[2] / "build" / "tools"
STORY = "Tell me a story about a fox."


def said_by(tool: str, program: str, *arguments: str | Path) -> Any:
    """What a program of a client prints, as JSON."""
    python = TOOLS_FOLDER / tool / "bin" / "python"
    if not python.exists():
        pytest.skip(f"needs a tool: {tool}, which `make tools` installs")
    command = [python, Path(__file__).with_name("client_programs.py"), program, *arguments]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**os.environ, **offline})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model in the checkpoint's own numbers."""
    options = {"weights": "bf16", "activations": "fp32", "kv_cache": "fp32"}
    return tiny_model(tmp_path_factory.mktemp("exact") / "tiny", **options)


@pytest.fixture(scope="module")
def server(exact: Path) -> Iterator[ServerProcess]:
    with running_server(exact, "--name", "tiny", "--threads", "2") as server:
        yield server


def test_llama_index(server: ServerProcess, exact: Path) -> None:
    said = said_by("llama-index", "llama_index", server.url, STORY)
    with LLM(exact, num_threads=1) as llm:
        params = SamplingParams(temperature=0, max_tokens=30)
        chat = llm.chat([{"role": "user", "content": STORY}], params)[0].outputs[0].text
        vectors = llm.embed([STORY, "an old house"])
        text = llm.generate(STORY, params)[0].outputs[0].text
    assert said["chat"] == said["stream"] == said["chat model completes"] == chat
    assert said["complete"] == text
    assert np.allclose(said["vectors"], vectors, atol=1e-6) and np.allclose(said["vector"], vectors[0], atol=1e-6)


QUESTIONS: list[dict[str, Any]] = [
    {"text": "Once upon a time there was a hungry", "choices": [" fox", " the", " xylophone"], "answer": 0},
    {"text": "The fox wanted to visit an old", "choices": [" quickly", " aunt", " and of"], "answer": 1},
    {"text": "Tell me a", "choices": [" story", " storm about", " with"], "answer": 2},
    {"text": "There lived in a small", "choices": [" village", " villages of", " is"], "answer": 1},
]
TASK = """
task: foxes
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.mark.parametrize("sends", ["texts", "tokens"])
def test_lm_eval(server: ServerProcess, tmp_path: Path, sends: str) -> None:
    """Its scores by way of /v1/completions are those of its own transformers backend."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (tmp_path / "foxes.yaml").write_text(TASK.format(questions=questions))
    truth = said_by("lm-eval", "lm_eval_of_transformers", tmp_path, MODEL)
    ours = said_by("lm-eval", "lm_eval_of_server", tmp_path, server.url, MODEL, sends)
    assert ours["scores"] == truth["scores"] and 0 < truth["scores"]["acc"] < 1
    np.testing.assert_allclose(ours["logprobs"], truth["logprobs"], atol=2e-3)
    assert ours["greedy"] == truth["greedy"] and len(ours["logprobs"]) == 12
