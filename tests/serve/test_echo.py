"""`echo` with `logprobs`: how likely the prompt itself was, as evaluation harnesses ask for it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from server_process import ServerProcess

from qwench import LLM, SamplingParams

PROMPT = "Once upon a time there was a fox"


def complete(server: ServerProcess, **fields: Any) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}/v1/completions", json={"temperature": 0, **fields}, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def truth(llm: LLM, prompt: list[int] | str, num_top: int, max_tokens: int) -> tuple[list[Any], list[Any]]:
    """token_logprobs and top_logprobs of prompt and answer."""
    params = SamplingParams(temperature=0, max_tokens=max_tokens, logprobs=num_top, prompt_logprobs=num_top)
    [output] = llm.generate(prompt, params)
    entries = [*(output.prompt_logprobs or ()), *(output.outputs[0].logprobs or ())]
    top = [None if entry is None else sorted((x for _, x in entry.top), reverse=True) for entry in entries]
    return [None if entry is None else entry.logprob for entry in entries], top


@pytest.mark.parametrize("max_tokens", [0, 1, 9])
def test_prompt_and_answer(server: ServerProcess, llm: LLM, max_tokens: int) -> None:
    result = complete(server, prompt=PROMPT, max_tokens=max_tokens, echo=True, logprobs=3)
    [choice] = result["choices"]
    logprobs, count = choice["logprobs"], len(llm.text_engine.encode(PROMPT))
    expected, top = truth(llm, PROMPT, 3, max(max_tokens, 1))
    kept = count + max_tokens
    assert logprobs["token_logprobs"] == expected[:kept] and logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert [entry and list(entry.values()) for entry in logprobs["top_logprobs"]] == top[:kept]
    assert "".join(logprobs["tokens"]) == choice["text"] and choice["text"].startswith(PROMPT)
    assert logprobs["text_offset"] == [len("".join(logprobs["tokens"][:i])) for i in range(kept)]
    assert result["usage"]["completion_tokens"] == max_tokens
    assert result["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert choice["finish_reason"] == "length" and choice["text"] == PROMPT + choice["text"][len(PROMPT) :]


def test_as_an_evaluation_harness_does_it(server: ServerProcess, llm: LLM) -> None:
    """Context and continuation as tokens, several at once; it drops the last entry, the generated token, even where
    that ends the answer."""
    end = min(llm.engine.eos_token_ids)
    prompts = [llm.text_engine.encode(text) for text in (PROMPT, "The old house", "a")] + [[5, 6, 7] * 50]
    result = complete(
        server, prompt=prompts, max_tokens=1, echo=True, logprobs=1, seed=1234, logit_bias={str(end): 100.0}
    )
    for choice, prompt in zip(sorted(result["choices"], key=lambda choice: choice["index"]), prompts, strict=True):
        expected, top = truth(llm, prompt, 1, 1)
        assert choice["finish_reason"] == "stop"
        assert choice["logprobs"]["token_logprobs"][:-1] == expected[:-1]
        greedy = [max(entry.values()) for entry in choice["logprobs"]["top_logprobs"][1:-1]]
        assert greedy == [entry[0] for entry in top[1:-1]]


def test_streamed_and_whole_agree(server: ServerProcess) -> None:
    wish = {
        "prompt": [PROMPT, "a"],
        "n": 2,
        "max_tokens": 6,
        "echo": True,
        "logprobs": 2,
        "temperature": 0.8,
        "seed": 3,
    }
    whole = complete(server, **wish)
    lines = httpx.post(f"{server.url}/v1/completions", json={**wish, "stream": True}, timeout=60).text.splitlines()
    built: dict[int, Any] = {i: {"text": "", "token_logprobs": [], "text_offset": []} for i in range(4)}
    for line in lines:
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                mine = built[choice["index"]]
                mine["text"] += choice["text"]
                if choice["logprobs"] is not None:
                    for name in ("token_logprobs", "text_offset"):
                        mine[name] += choice["logprobs"][name]
    for choice in whole["choices"]:
        mine = built[choice["index"]]
        assert mine["text"] == choice["text"]
        assert all(mine[name] == choice["logprobs"][name] for name in ("token_logprobs", "text_offset"))


def test_nothing_but_the_prompt(server: ServerProcess) -> None:
    result = complete(server, prompt=PROMPT, max_tokens=0, echo=True)
    assert result["choices"][0]["text"] == PROMPT and result["usage"]["completion_tokens"] == 0
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": PROMPT, "max_tokens": 0})
    assert answer.status_code == 400 and "echo" in answer.json()["error"]["message"]
