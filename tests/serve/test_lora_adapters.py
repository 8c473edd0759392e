"""`serve --lora` and the routes that load more: adapters are models to clients, and answer as they do alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file
from server_process import ServerProcess, running_server, wait_for

from qwench import LLM, SamplingParams

PROMPT = "Once upon a time there was a fox"


def write_adapter(folder: Path, seed: int, hidden: int, layers: int) -> Path:
    """For the default model, of the square matrices of its attention."""
    rng, tensors = np.random.default_rng(seed), {}
    for layer in range(layers):
        module = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        tensors[f"{module}.lora_A.weight"] = rng.standard_normal((8, hidden), np.float32) / hidden**0.5
        tensors[f"{module}.lora_B.weight"] = rng.standard_normal((hidden, 8), np.float32) / 2
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 8}))
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, llm: LLM) -> Path:
    """A folder of three."""
    assert llm._artifact is not None
    folder, spec = tmp_path_factory.mktemp("adapters"), llm._artifact.program.spec
    for seed, name in enumerate(("a", "b", "c")):
        write_adapter(folder / name, seed, spec.hidden_size, spec.num_layers)
    write_adapter(folder / "wrong", 9, spec.hidden_size + 64, spec.num_layers)
    return folder


@pytest.fixture(scope="module")
def truth(llm: LLM, adapters: Path) -> Iterator[dict[str | None, str]]:
    """What each answers alone; no two the same."""
    params = SamplingParams(temperature=0.0, max_tokens=24)
    for name in ("a", "b", "c"):
        llm.load_lora(name, adapters / name)
    found = {name: llm.generate(PROMPT, params, lora=name)[0].outputs[0].text for name in (None, "a", "b", "c")}
    assert len(set(found.values())) == 4
    yield found
    for name in ("a", "b", "c"):
        llm.unload_lora(name)


@pytest.fixture(scope="module")
def lora_server(artifact: Path, adapters: Path) -> Iterator[ServerProcess]:
    options = ("--lora", f"a={adapters / 'a'}", "--lora", f"b={adapters / 'b'}", "--lora-dir", str(adapters))
    with running_server(artifact, "--name", "tiny", "--threads", "1", *options) as server:
        yield server


def complete(client: httpx.Client, model: str, **fields: Any) -> httpx.Response:
    body = {"model": model, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, **fields}
    return client.post("/v1/completions", json=body)


def text_of(client: httpx.Client, model: str) -> str:
    reply = complete(client, model).json()
    assert reply["model"] == model
    return str(reply["choices"][0]["text"])


def test_adapters_are_models(lora_server: ServerProcess, truth: dict[str | None, str]) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{lora_server.url}/v1", api_key="none", max_retries=0)
    models = {model.id: model.model_dump().get("parent") for model in client.models.list()}
    assert models == {"tiny": None, "a": "tiny", "b": "tiny"}
    assert client.models.retrieve("a").id == "a"
    with ThreadPoolExecutor(6) as pool, lora_server.client() as http:  # in one batch
        names = ["a", "tiny", "b", "a", "b", "tiny"]
        found = list(pool.map(lambda name: text_of(http, name), names))
    assert found == [truth[None if name == "tiny" else name] for name in names]
    chat = client.chat.completions.create(
        model="a", messages=[{"role": "user", "content": "Hi"}], max_tokens=4, temperature=0
    )
    assert chat.model == "a"
    vectors = [client.embeddings.create(model=name, input=PROMPT).data[0].embedding for name in ("tiny", "a")]
    assert vectors[0] != vectors[1]


def test_loading_and_unloading(lora_server: ServerProcess, adapters: Path, truth: dict[str | None, str]) -> None:
    with lora_server.client() as client:
        assert complete(client, "c").status_code == 404
        loaded = client.post("/v1/load_lora_adapter", json={"lora_name": "c", "lora_path": str(adapters / "c")})
        assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'c' added successfully.")
        assert text_of(client, "c") == truth["c"]
        again = client.post("/v1/load_lora_adapter", json={"lora_name": "c", "lora_path": "b"})
        assert again.status_code == 400 and "already an adapter 'c'" in again.json()["error"]["message"]
        replaced = {"lora_name": "c", "lora_path": "b", "load_inplace": True}
        assert client.post("/v1/load_lora_adapter", json=replaced).status_code == 200
        assert text_of(client, "c") == truth["b"]
        gone = client.post("/v1/unload_lora_adapter", json={"lora_name": "c"})
        assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'c' removed successfully.")
        assert complete(client, "c").status_code == 404
        assert client.post("/v1/unload_lora_adapter", json={"lora_name": "c"}).status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [({"lora_name": "x", "lora_path": "wrong"}, 400, "another model's adapter"),
     ({"lora_name": "x", "lora_path": "absent"}, 400, "no LoRA adapter"),
     ({"lora_name": "x", "lora_path": "../"}, 403, "outside the folder"),
     ({"lora_name": "x", "lora_path": "/etc"}, 403, "outside the folder"),
     ({"lora_name": "x", "lora_path": "a\0b"}, 400, "no path"),
     ({"lora_name": "tiny", "lora_path": "a"}, 400, "the model itself"),
     ({"lora_name": "", "lora_path": "a"}, 400, "lora_name"), ({"lora_name": "x"}, 400, "lora_path")],
)  # fmt: skip
def test_what_is_not_loaded(lora_server: ServerProcess, body: dict[str, Any], status: int, message: str) -> None:
    with lora_server.client() as client:
        reply = client.post("/v1/load_lora_adapter", json=body)
        assert reply.status_code == status and message in reply.json()["error"]["message"]
        assert complete(client, "a", max_tokens=1).status_code == 200


def test_a_link_out_of_the_folder_is_not_followed(lora_server: ServerProcess, adapters: Path, tmp_path: Path) -> None:
    outside = shutil.copytree(adapters / "a", tmp_path / "outside")
    (adapters / "link").symlink_to(outside)
    with lora_server.client() as client:
        assert client.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "link"}).status_code == 403


def test_other_servers_adapters_are_fixed(server: ServerProcess) -> None:
    with server.client() as client:
        reply = client.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "/tmp"})
        assert reply.status_code == 403 and "--lora-dir" in reply.json()["error"]["message"]
        assert client.post("/v1/unload_lora_adapter", json={"lora_name": "x"}).status_code == 403


def test_an_engine_that_died_comes_back_with_its_adapters(
    artifact: Path, adapters: Path, truth: dict[str | None, str]
) -> None:
    options = ("--lora", f"a={adapters / 'a'}", "--lora", f"b={adapters / 'b'}", "--lora-dir", str(adapters))
    with running_server(artifact, "--name", "tiny", "--threads", "1", *options) as server, server.client() as client:
        assert client.post("/v1/load_lora_adapter", json={"lora_name": "c", "lora_path": "c"}).status_code == 200
        assert client.post("/v1/unload_lora_adapter", json={"lora_name": "b"}).status_code == 200
        os.kill(server.child("engine_process"), signal.SIGKILL)
        wait_for(lambda: client.get("/ready").status_code == 503)
        wait_for(lambda: client.get("/ready").status_code == 200, timeout_s=60)
        assert {model["id"] for model in client.get("/v1/models").json()["data"]} == {"tiny", "a", "c"}
        assert text_of(client, "c") == truth["c"] and text_of(client, "a") == truth["a"]
        assert complete(client, "b").status_code == 404


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--lora", "x"), "not NAME=FOLDER"), (("--lora", "tiny={a}"), "'tiny' is the name of the model"),
     (("--lora", "x={a}", "--lora", "x={b}"), "names must differ"),
     (("--lora", "x={wrong}"), "another model's adapter"),
     (("--lora-dir", "{absent}"), "is not a folder")],
)  # fmt: skip
def test_a_server_that_can_t_have_its_adapters_says_so(
    artifact: Path, adapters: Path, options: tuple[str, ...], message: str
) -> None:
    given = [option.format(**{name: adapters / name for name in ("a", "b", "wrong", "absent")}) for option in options]
    process = ServerProcess(artifact, "--name", "tiny", *given)
    assert process.process.wait(120) == 2
    process._listening.wait(10)
    assert message in "".join(process.log) and "Traceback" not in "".join(process.log)
