"""`serve --draft`: the same answers, and metrics that say who guessed what."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
from server_process import MODEL, running_server

from qwench import LLM, SamplingParams

PROMPT = "Once upon a time there was a fox"
FIELDS: list[dict[str, Any]] = [
    {"temperature": 0, "max_tokens": 40}, {"temperature": 0.7, "seed": 3, "max_tokens": 40},
    {"temperature": 0, "max_tokens": 40, "prompt_lookup_num_tokens": 8},
]  # fmt: skip


def test_the_same_answers_and_metrics_by_method(artifact: Path, llm: LLM) -> None:
    draft = MODEL.parent / "qwench-tiny-draft"
    with running_server(artifact, "--name", "tiny", "--threads", "1", "--draft", str(draft)) as server:
        for _ in range(3):
            for fields in FIELDS:
                body = {"model": "tiny", "prompt": PROMPT, "top_p": 1.0, "top_k": 0, **fields}
                answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
                expected = llm.generate(PROMPT, SamplingParams(**fields))[0].outputs[0].text
                assert answer["choices"][0]["text"] == expected
        metrics = httpx.get(f"{server.url}/metrics", timeout=60).text
    counters = r"^qwench_(\S*(?:spec_decode|draft|accepted)\S*_total\S*) (\S+)$"
    found = {name: float(value) for name, value in re.findall(counters, metrics, re.MULTILINE)}
    by_method = {
        what: {method: found[f'spec_decode_num_{what}_tokens_total{{method="{method}"}}'] for method in
               ("draft_model", "ngram")} for what in ("draft", "accepted")
    }  # fmt: skip
    assert sum(by_method["draft"].values()) == found["drafted_tokens_total"] > 0
    assert sum(by_method["accepted"].values()) == found["accepted_tokens_total"]
    assert all(by_method["accepted"][method] <= by_method["draft"][method] for method in ("draft_model", "ngram"))
    assert 0 < found["spec_decode_num_drafts_total"] <= found["drafted_tokens_total"]
    assert found["draft_steps_total"] > 0 and found["draft_seconds_total"] > 0
