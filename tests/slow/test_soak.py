"""Minutes of mixed load: nothing is lost, nothing grows. QWENCH_SOAK_S says how many seconds; 300 unless given."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
from server_process import ServerProcess, running_server, wait_for
from soak_load import STORIES, SoakLoad
from test_faults_at_length import connect, shown, use_whole_pool

SOAK_S = float(os.environ.get("QWENCH_SOAK_S", "300"))
NUM_CLIENTS = 12
WARM_UP = 0.3  # of the time, after which all pools and arenas have the size they need


def test_soak(artifact: Path) -> None:
    with running_server(artifact, "--threads", "1") as server, server.client() as http:
        greedy = {
            prompt: http.post("/v1/completions", json={"prompt": prompt, "temperature": 0, "max_tokens": 60}).json()
            ["choices"][0]["text"]
            for prompt in STORIES
        }  # fmt: skip
        use_whole_pool(server)
        asyncio.run(soak(server, greedy))


async def soak(server: ServerProcess, greedy: dict[str, str]) -> None:
    end, memory = time.monotonic() + SOAK_S, []
    async with connect(server) as http:
        clients = [SoakLoad(http, seed, greedy) for seed in range(NUM_CLIENTS)]

        async def live(client: SoakLoad) -> None:
            while time.monotonic() < end:
                await client.one()

        lives = [asyncio.create_task(live(client)) for client in clients]
        while not all(life.done() for life in lives):
            memory.append(server.resident_mib())
            await asyncio.sleep(SOAK_S / 100)
        await asyncio.gather(*lives)
    await asyncio.to_thread(check_accounts, server, clients)
    check_memory(memory)


def check_accounts(server: ServerProcess, clients: list[SoakLoad]) -> None:
    wait_for(lambda: server.is_idle() and server.metric("qwench_kv_blocks_used") == 0)
    assert server.metric("qwench_requests_waiting") == server.metric("qwench_engine_restarts_total") == 0
    assert server.metric('qwench_answers_total{reason="error"}') == 0
    generated, told = server.metric("qwench_generated_tokens_total"), sum(client.generated for client in clients)
    assert generated >= told
    counts = sum((client.counts for client in clients), Counter[str]())
    print(f"\nsoak: {SOAK_S:.0f} s, {counts.total()} requests {dict(sorted(counts.items()))}; {generated:.0f} tokens, "
          f"{told} of them in whole answers; {server.metric('qwench_cached_prompt_tokens_total'):.0f} of "
          f"{server.metric('qwench_prompt_tokens_total'):.0f} prompt tokens cached, "
          f"{server.metric('qwench_preemptions_total'):.0f} preemptions")  # fmt: skip
    assert set(counts) == {wish.__name__ for wish in clients[0]._wishes}
    use_whole_pool(server)
    assert httpx.get(f"{server.url}/ready").status_code == 200


def check_memory(samples: list[dict[str, float]]) -> None:
    """Beyond the warm-up, the end against the beginning; medians, since single samples meet large requests."""
    samples = samples[int(WARM_UP * len(samples)) :]
    third = max(len(samples) // 3, 1)
    early, late = (
        {name: float(np.median([sample[name] for sample in some])) for name in samples[0]}
        for some in (samples[:third], samples[-third:])
    )
    print(f"memory, MiB: {shown(early)} -> {shown(late)}")
    for name in early:
        assert late[name] < 1.05 * early[name] + 4, f"{name}: {early[name]:.1f} -> {late[name]:.1f} MiB"
