"""`qwench serve A B C`: one server, an engine process for each model, loaded as they are asked for and as they fit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import ServerProcess, running_server, short_model, wait_for
from test_lora_adapters import write_adapter
from test_pooling_routes import classifier

from qwench import LLM, SamplingParams
from qwench.cli.main import main
from qwench.serve.processes.children import Child
from qwench.serve.processes.text_client import TextClient

PROMPT = "Once upon a time there was a fox"
TALE = "Once upon a time there was a fox who lived in a wood. " * 8
MEMORY = "26MiB"  # for two: tiny and the one with tools need 12.3 MiB, the ranker 12.7, the short one 7
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def folders(artifact: Path, tool_artifact: Path, tmp_path_factory: pytest.TempPathFactory, llm: LLM) -> dict[str, Path]:
    """Of the models, of what may be done away with, and of an adapter of the first."""
    folder = tmp_path_factory.mktemp("several")
    assert llm._artifact is not None
    spec = llm._artifact.program.spec
    (folder / "prefixes" / "tiny").mkdir(parents=True)
    assert llm.save_prefix(TALE, folder / "prefixes" / "tiny" / "tale.prefix") >= 64
    return {
        "tiny": artifact,
        "tools": tool_artifact,
        "rank": classifier(folder, ["relevance"]),
        "short": short_model(folder / "short"),
        "prefixes": folder / "prefixes",
        "adapter": write_adapter(folder / "adapter", 0, spec.hidden_size, spec.num_layers),
    }


@pytest.fixture(scope="module")
def several(folders: dict[str, Path]) -> Iterator[ServerProcess]:
    """Two of the three fit."""
    options = (
        f"rank={folders['rank']}", f"Org/Tools={folders['tools']}", "--memory", MEMORY, "--threads", "1",
        "--lora", f"tiny/fox={folders['adapter']}", "--lora-dir", str(folders["adapter"].parent),
        "--prefix-dir", str(folders["prefixes"]),
    )  # fmt: skip
    with running_server(folders["tiny"], *options) as server:
        yield server


@pytest.fixture
def http(several: ServerProcess) -> Iterator[httpx.Client]:
    with several.client() as client:
        yield client
        wait_for(lambda: all(several.metric(f'qwench_answers_open{{model="{name}"}}') == 0 for name in states(client)))


def states(http: httpx.Client) -> dict[str, str]:
    """Of the models, without their adapters."""
    return {m["id"]: m["state"] for m in http.get("/v1/models").json()["data"] if "parent" not in m}


def complete(http: httpx.Client, model: str | None, **fields: Any) -> httpx.Response:
    body = {"model": model, "prompt": PROMPT, "max_tokens": 16, "temperature": 0, **fields}
    return http.post("/v1/completions", json=body)


def rank(http: httpx.Client, **options: Any) -> httpx.Response:
    return http.post("/v1/rerank", json={"model": "rank", "query": "fox", "documents": ["owl", "fox"]}, **options)


def load_tiny_and_rank(http: httpx.Client) -> None:
    assert complete(http, "tiny", max_tokens=1).status_code == rank(http).status_code == 200
    assert states(http) == {"tiny": "loaded", "rank": "loaded", "Org/Tools": "unloaded"}


def test_each_answers_by_its_name(http: httpx.Client, llm: LLM, folders: dict[str, Path]) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=16)
    llm.load_lora("fox", folders["adapter"])
    truth = {lora: llm.generate(PROMPT, params, lora=lora)[0].outputs[0].text for lora in (None, "fox")}
    llm.unload_lora("fox")
    for asked, answered in (("tiny", "tiny"), ("TINY:latest", "tiny"), (None, "tiny"), ("", "tiny"), ("fox", "fox")):
        reply = complete(http, asked).json()
        assert (reply["model"], reply["choices"][0]["text"]) == (answered, truth["fox" if asked == "fox" else None])
    ranked = rank(http).json()
    assert ranked["model"] == "rank" and len(ranked["results"]) == 2
    assert http.post("/v1/embeddings", json={"model": "tiny", "input": "a"}).json()["model"] == "tiny"
    usage = complete(http, "tiny", prompt=TALE).json()["usage"]  # from the file
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 32
    chat = {"messages": [{"role": "user", "content": "Hi"}], "tools": [TOOL], "tool_choice": "required"}
    for name in ("Org/Tools", "org/tools"):
        reply = http.post("/v1/chat/completions", json={"model": name, "max_tokens": 64, **chat}).json()
        assert reply["model"] == "Org/Tools" and reply["choices"][0]["message"]["tool_calls"]
    unknown = complete(http, "Tools")
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"
    assert "'tiny' or 'fox' or 'rank' or 'Org/Tools'" in unknown.json()["error"]["message"]


def test_they_are_listed_and_tell_of_themselves(http: httpx.Client, several: ServerProcess) -> None:
    load_tiny_and_rank(http)
    listed = {model["id"]: model for model in http.get("/v1/models").json()["data"]}
    assert list(listed) == ["tiny", "fox", "rank", "Org/Tools"] and listed["fox"]["parent"] == "tiny"
    assert {name: model["state"] for name, model in listed.items()} == {
        "tiny": "loaded", "fox": "loaded", "Org/Tools": "unloaded", "rank": "loaded"
    }  # fmt: skip
    assert all(model["max_model_len"] > 0 for model in listed.values())
    assert http.get("/v1/models/org/tools").json()["state"] == "unloaded"
    assert http.get("/props").json()["model_alias"] == http.get("/props?model=fox").json()["model_alias"] == "tiny"
    assert len(http.get("/slots?model=rank").json()) >= 1
    absent, unknown = http.get("/props?model=Org/Tools"), http.get("/slots?model=x")
    assert absent.status_code == 503 and "isn't loaded" in absent.json()["error"]["message"]
    assert unknown.status_code == 404
    assert http.get("/ready").status_code == http.get("/health").status_code == 200
    assert several.metric('qwench_ready{model="rank"}') == 1 and several.metric('qwench_ready{model="Org/Tools"}') == 0
    assert several.metric('qwench_time_to_first_token_seconds_count{model="tiny"}') >= 1
    assert len(several.children("engine_process")) == len(several.children("text_process")) == 2


def test_adapters_are_loaded_for_the_model_that_is_named(http: httpx.Client) -> None:
    def load(name: str, **fields: Any) -> httpx.Response:
        return http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": "adapter", **fields})

    refused = load("owl")
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "base_model_name"
    assert load("owl", base_model_name="x").status_code == 404
    assert load("rank", base_model_name="tiny").status_code == 400
    assert "of 'tiny'" in load("fox", base_model_name="org/tools").json()["error"]["message"]
    assert load("owl", base_model_name="Org/Tools").status_code == 200
    assert http.get("/v1/models/owl").json()["parent"] == "Org/Tools"
    before = complete(http, "owl").json()["choices"]
    load_tiny_and_rank(http)  # it is let go, and comes back with what it had
    assert complete(http, "owl").json()["choices"] == before != complete(http, "Org/Tools").json()["choices"]
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "owl"}).status_code == 200
    assert complete(http, "owl").status_code == 404


def test_many_requests_for_more_models_than_fit(http: httpx.Client, several: ServerProcess) -> None:
    """Streamed or not, some of whose clients leave: none hangs, none is lost."""
    told: Counter[tuple[str, bool]] = Counter()

    async def ask(client: httpx.AsyncClient, i: int) -> None:
        model = ("tiny", "Org/Tools", "fox", "rank")[i % 4]
        if model == "rank":
            body = {"model": model, "query": "fox", "documents": ["a fox", "an owl"]}
            reply = await client.post("/v1/rerank", json=body)
            told[model, reply.status_code == 200] += 1
            return
        body = {"model": model, "prompt": PROMPT, "max_tokens": 24, "ignore_eos": True, "stream": i % 3 == 0}
        leaves = i % 5 == 4
        with contextlib.suppress(asyncio.TimeoutError):
            reply = await asyncio.wait_for(client.post("/v1/completions", json=body), 0.05 * (i % 7) if leaves else 120)
            told[model, reply.status_code == 200 and '"finish_reason":"length"' in reply.text] += not leaves

    async def run() -> None:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=several.url, timeout=120, limits=limits) as client:
            await asyncio.gather(*(ask(client, i) for i in range(80)))

    asyncio.run(run())
    assert all(fine for _, fine in told) and sum(told.values()) >= 64, told
    wait_for(lambda: "loading" not in states(http).values())


def test_streams_keep_their_models_and_a_client_that_leaves_lets_them_serve_on(http: httpx.Client) -> None:
    assert complete(http, "tiny", max_tokens=1).status_code == complete(http, "Org/Tools").status_code == 200
    replies: list[httpx.Response] = []
    with streaming(http, "tiny") as first, streaming(http, "Org/Tools") as second:
        with contextlib.suppress(httpx.ReadTimeout):
            rank(http, timeout=0.3)
            raise AssertionError("there was no room for it")
        for model in ("tiny", "Org/Tools"):  # nobody waits for the other any more
            assert complete(http, model, max_tokens=1).status_code == 200
        assert states(http) == {"tiny": "loaded", "rank": "unloaded", "Org/Tools": "loaded"}
        waits = threading.Thread(target=lambda: replies.append(rank(http, timeout=120)))
        waits.start()
        rests = [list(first), list(second)]
    waits.join(120)
    for rest in rests:
        assert rest[-2] == "data: [DONE]" and '"finish_reason":"length"' in "".join(rest)
    assert replies[0].status_code == 200 and states(http)["rank"] == "loaded"


@contextlib.contextmanager
def streaming(http: httpx.Client, model: str) -> Iterator[Iterator[str]]:
    """The lines of a long answer behind the first."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": 1900, "ignore_eos": True, "stream": True}
    with http.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        yield lines


def test_keep_alive_of_requests(http: httpx.Client) -> None:
    assert complete(http, "rank").status_code == 400  # it ranks and writes nothing
    assert complete(http, "tiny", keep_alive="1m").status_code == 200 and states(http)["tiny"] == "loaded"
    assert complete(http, "tiny", keep_alive=0).status_code == 200
    wait_for(lambda: states(http)["tiny"] == "unloaded", timeout_s=10)
    assert http.post("/tokenize", json={"model": "tiny", "prompt": "a", "keep_alive": "0.2s"}).status_code == 200
    assert states(http)["tiny"] == "loaded"
    wait_for(lambda: states(http)["tiny"] == "unloaded", timeout_s=10)
    assert http.get("/ready").status_code == 200
    assert http.post("/v1/embeddings", json={"model": "tiny", "input": "a", "ttl": "soon"}).status_code == 400


def test_ollamas_clients_load_and_let_go(http: httpx.Client) -> None:
    def running() -> dict[str, str]:
        return {model["name"]: model["expires_at"] for model in http.get("/api/ps").json()["models"]}

    load_tiny_and_rank(http)
    assert {model["name"] for model in http.get("/api/tags").json()["models"]} >= {"tiny:latest", "Org/Tools:latest"}
    loaded = http.post("/api/generate", json={"model": "tiny", "keep_alive": "10m"}).json()
    assert loaded["done_reason"] == "load"
    found = running()
    assert set(found) == {"tiny:latest", "fox:latest", "rank:latest"}
    assert found["rank:latest"].startswith("2100") and not found["tiny:latest"].startswith("2100")
    assert http.post("/api/chat", json={"model": "Org/Tools", "keep_alive": 0}).json()["done_reason"] == "unload"
    assert states(http)["Org/Tools"] == "unloaded"  # it was not loaded for that
    assert http.post("/api/generate", json={"model": "tiny:latest", "keep_alive": 0}).json()["done_reason"] == "unload"
    wait_for(lambda: states(http)["tiny"] == "unloaded", timeout_s=10)
    assert set(running()) == {"rank:latest"}


def test_an_engine_that_is_killed_starts_again_alone(
    http: httpx.Client, several: ServerProcess, folders: dict[str, Path]
) -> None:
    load_tiny_and_rank(http)
    with streaming(http, "tiny") as lines:
        os.kill(several.child("engine_process", str(folders["rank"])), signal.SIGKILL)
        wait_for(lambda: states(http)["rank"] == "loading", timeout_s=10, every_s=0.001)
        assert http.get("/ready").status_code == 200
        wait_for(lambda: rank(http).status_code == 200, timeout_s=60)
        rest = list(lines)
    assert '"finish_reason":"length"' in "".join(rest) and rest[-2] == "data: [DONE]"
    assert several.metric('qwench_engine_restarts_total{model="rank"}') == 1
    assert several.metric('qwench_engine_restarts_total{model="tiny"}') == 0
    assert any("of rank died" in line for line in several.log)


def test_models_that_do_not_fit_and_one_whose_folder_vanishes(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["short"], tmp_path / "copy")
    options = (f"large={folders['tiny']}", str(tmp_path / "copy"), "--memory", "12MiB", "--keep-alive", "0.1s")
    with running_server(folders["short"], *options, "--threads", "1") as server, server.client() as http:
        assert any("large needs" in line and "are refused" in line for line in server.log)
        refusal = complete(http, "large")
        assert refusal.status_code == 507 and refusal.json()["error"]["code"] == "insufficient_memory"
        assert "needs 12" in refusal.json()["error"]["message"]
        wait_for(lambda: set(states(http).values()) == {"unloaded"}, timeout_s=20)  # by --keep-alive
        assert http.get("/ready").status_code == 200
        (tmp_path / "copy").rename(tmp_path / "elsewhere")
        refusal = complete(http, "copy", max_tokens=2)
        assert refusal.status_code == 503 and str(tmp_path) not in refusal.text
        assert refusal.json()["error"]["code"] == "model_not_loaded"
        assert complete(http, "short", max_tokens=2).status_code == 200
        (tmp_path / "elsewhere").rename(tmp_path / "copy")
        assert complete(http, "copy", max_tokens=2).status_code == 200
        start = time.monotonic()
        assert server.stop() == 0 and time.monotonic() - start < 20


def test_a_process_is_stopped_while_it_starts_and_started_again(artifact: Path) -> None:
    child = Child("qwench.serve.processes.text_process", {"folder": str(artifact)})
    client = TextClient(child, time_limit_s=5)

    async def run() -> list[list[int]]:
        starting = asyncio.create_task(client.start())
        await asyncio.sleep(0.01)
        await client.stop()
        assert not child.is_started and child.process.poll() is not None
        with pytest.raises(asyncio.CancelledError):
            await starting
        for _ in range(2):
            await client.start()
            ids = await client.encode(["a fox"], 100)
            await client.stop()
        assert not client.is_ready and client.num_restarts == 0
        return ids

    assert len(asyncio.run(run())[0]) >= 2


def test_a_single_model_stays_whatever_requests_say(server: ServerProcess) -> None:
    engine = server.child("engine_process")
    with server.client() as http:
        assert complete(http, "tiny", max_tokens=1, keep_alive=0).status_code == 200
        time.sleep(0.2)
        assert server.child("engine_process") == engine and states(http) == {"tiny": "loaded", "alias": "loaded"}


@pytest.mark.parametrize(
    ("options", "message"),
    [(("{tiny}",), "two models are called"), (("b={short}", "B={rank}"), "two models are called"),
     (("{short}", "--name", "x"), "NAME=MODEL"), (("{short}", "--draft", "{short}"), "for a single model"),
     (("=x",), "is not NAME=MODEL"),
     (("{short}", "--memory", "1MiB"), "none of the models fits"),
     (("copy={tiny}", "--lora", "fox={adapter}"), "fits tiny and copy; say whose it is"),
     (("{rank}", "--lora", "fox={short}"), "fits none of the models"),
     (("{short}", "--lora", "tiny/short={adapter}"), "two models are called 'short'"),
     (("{short}", "--keep-alive", "soon"), "is no duration"),
     (("{short}", "--prefix-dir", "{stray}"), "is nobody's"), (("absent",), "absent")],
)  # fmt: skip
def test_what_is_refused_at_the_start(
    folders: dict[str, Path], tmp_path: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stray.prefix").touch()
    given = [option.format(**folders, stray=tmp_path) for option in options]
    assert main(["serve", str(folders["tiny"]), *given]) == 2
    assert message in capsys.readouterr().err
