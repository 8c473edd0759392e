"""The server as two replicas behind Ray Serve: the same answers, refusals and aborts, and a replica that is killed."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import wait_for

from qwench import LLM, SamplingParams

pytest.importorskip("ray.serve", reason='replicas need pip install "qwench[ray]"')

from ray_cluster import RayCluster, running_cluster

KEY = "a-key-of-this-server"
SMALL = ("replicas=2", "name=tiny")  # a processor each, which are all there are


@pytest.fixture(scope="module")
def cluster(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    folder = tmp_path_factory.mktemp("ray")
    keys = folder / "keys.txt"
    keys.write_text(KEY)
    model = shutil.copytree(artifact, folder / "tiny")  # by whose path this cluster's processes are known
    with running_cluster(model, folder / "log", *SMALL, f"api_key_file={keys}") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: RayCluster) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=cluster.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
        yield client


def chat(client: httpx.Client, text: str, **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "temperature": 0, **fields}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def samples(client: httpx.Client, name: str) -> list[float]:
    """Of each replica. name: with its first labels, if it has others."""
    lines = client.get("/metrics").text.splitlines()
    return [
        float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{replica=", f"{name},replica="))
    ]


def test_answers_are_those_of_the_model(cluster: RayCluster, llm: LLM) -> None:
    openai = pytest.importorskip("openai", reason="the tests of real clients need openai")
    messages = [{"role": "user", "content": "Tell me a story."}]
    [truth] = llm.chat(messages, SamplingParams(temperature=0, max_tokens=24))[0].outputs
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        stream = client.chat.completions.create(
            model="tiny", temperature=0, max_tokens=24, stream=True, messages=messages
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == truth.text


def test_a_conversation_returns_to_its_replica(client: httpx.Client) -> None:
    """Its prompt is in the cache there, and only there; other conversations go to the other replica as well."""
    for text in [f"{number} stories, please. {'And long ones. ' * 8}" for number in range(6)]:
        turns = [chat(client, text, max_tokens=2)["usage"]["prompt_tokens_details"]["cached_tokens"] for _ in range(3)]
        assert turns[1] == turns[2] >= 16
    assert all(tokens > 0 for tokens in samples(client, "qwench_prompt_tokens_total"))
    assert len(samples(client, "qwench_ready")) == 2


def test_refusals_have_the_form_of_their_api(cluster: RayCluster, client: httpx.Client) -> None:
    body = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]}
    keyless = httpx.post(f"{cluster.url}/v1/messages", json=body)
    assert (keyless.status_code, keyless.json()["error"]["type"]) == (401, "authentication_error")
    unknown = client.post("/v1/messages", json={**body, "model": "other"})
    assert (unknown.status_code, unknown.json()["type"]) == (404, "error")
    assert unknown.headers["request-id"] == unknown.json()["request_id"]
    assert client.post("/v1/chat/completions", json={**body, "model": "other"}).json()["error"]["param"] == "model"
    assert httpx.get(f"{cluster.url}/healthz").status_code == 200  # without a key
    huge = client.post("/v1/completions", json={"model": "tiny", "prompt": "x" * (2 << 20)})
    assert (huge.status_code, huge.json()["error"]["type"]) == (413, "invalid_request_error")


def test_an_answer_ends_when_its_client_leaves(client: httpx.Client) -> None:
    body = {"model": "tiny", "prompt": "Once", "stream": True, "max_tokens": 1500, "ignore_eos": True, "n": 4}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())
    wait_for(lambda: sum(samples(client, "qwench_answers_open")) == 0, every_s=0.1)
    assert sum(samples(client, 'qwench_answers_total{reason="abort"')) > 0


@pytest.mark.slow
def test_a_killed_replica_takes_nobody_along(cluster: RayCluster, client: httpx.Client) -> None:
    """Requests of which nothing was sent are answered by the other replica; streams that had begun get an error, and
    those of the other replica don't notice. No process is left."""
    body = {"model": "tiny", "max_tokens": 1500, "ignore_eos": True, "temperature": 0}
    ends: dict[int, str] = {}

    def ask(number: int) -> None:
        prompt = f"{number} {'times ' * 8}"
        is_stream = number % 2 == 0
        with client.stream("POST", "/v1/completions", json={**body, "prompt": prompt, "stream": is_stream}) as answer:
            text = answer.read().decode()
        whole = "[DONE]" in text if is_stream else '"length"' in text
        ends[number] = "whole" if whole else "told" if '"the replica died' in text and is_stream else text[-300:]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: all(running > 0 for running in samples(client, "qwench_requests_running")), every_s=0.1)
    engine, replica = next(iter(cluster.engines().items()))
    os.kill(replica, signal.SIGKILL)
    killed = time.monotonic()
    wait_for(lambda: engine not in cluster.engines())
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads) and time.monotonic() - killed < 60
    assert all(ends[number] == "whole" for number in range(1, 8, 2)), ends
    assert {ends[number] for number in range(0, 8, 2)} == {"whole", "told"}, ends


def test_no_process_is_left(cluster: RayCluster) -> None:
    """The last one: it ends the cluster."""
    cluster.stop()
    wait_for(lambda: not cluster.processes(), timeout_s=15, every_s=0.2)
