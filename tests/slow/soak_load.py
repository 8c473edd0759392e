"""A mixture of everything that clients do, right and wrong, each wish checked for what it must get.

Used by test_soak.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

STORIES = [f"Once upon a time there was a {animal}" for animal in ("fox", "hare", "bear", "crow", "wolf", "toad")]
SHARED = "The old house stood at the end of the road, and nobody had lived in it for years. " * 12
BAD: list[tuple[str, bytes, int]] = [
    ("/v1/completions", b'{"prompt": "a", "temperature": 3}', 400),
    ("/v1/completions", b'{"prompt": [999999]}', 400),
    ("/v1/completions", b'{"prompt": "a", "model": "another"}', 404),
    ("/v1/chat/completions", b'{"messages": []}', 400),
    ("/v1/chat/completions", b"[" * 5000, 400),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "' + b"fox " * 5000 + b'"}]}', 400),
    ("/v1/responses", b'{"input": "\xff"}', 400),
    ("/v1/embeddings", b'{"input": []}', 400),
    ("/v1/embeddings", b'{"input": "' + b"a" * 400_000 + b'"}', 413),
    ("/tokenize", b"{}", 400),
    ("/nowhere", b"{}", 404),
]


class SoakLoad:
    """One client's choices, by its seed. counts: of what was done; generated: tokens of whole answers that came."""

    def __init__(self, http: httpx.AsyncClient, seed: int, greedy: dict[str, str]) -> None:
        self._http, self._rng, self._greedy = http, random.Random(seed), greedy
        self.counts: Counter[str] = Counter()
        self.generated = 0
        self._wishes: list[Callable[[], Awaitable[None]]] = [
            self.chat, self.chat_stream, self.completion, self.shared_prefix, self.tokens_with_logprobs, self.greedily,
            self.response, self.embed, self.scored, self.structured, self.leave, self.leave, self.wrong,
        ]  # fmt: skip

    async def one(self) -> None:
        wish = self._rng.choice(self._wishes)
        await wish()
        self.counts[wish.__name__] += 1

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self._http.post(path, json=body)
        assert answer.status_code == 200, f"{path} {body}: {answer.status_code} {answer.text}"
        result: dict[str, Any] = answer.json()
        usage = result["usage"]
        self.generated += usage.get("completion_tokens", usage.get("output_tokens", 0))
        return result

    def _messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self._rng.choice(STORIES) + " " + "and " * self._rng.randint(0, 60)}]

    async def chat(self) -> None:
        n = self._rng.choice([1, 1, 2, 4])
        body = {"messages": self._messages(), "n": n, "max_tokens": self._rng.randint(1, 120), "temperature": 0.9}
        result = await self._post("/v1/chat/completions", body)
        assert len(result["choices"]) == n
        assert all(choice["finish_reason"] in ("stop", "length") for choice in result["choices"])

    async def chat_stream(self) -> None:
        body = {"messages": self._messages(), "stream": True, "max_tokens": self._rng.randint(1, 200)}
        body |= {"stream_options": {"include_usage": True}, "temperature": 0.8, "top_p": 0.9}
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = [line async for line in answer.aiter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        usage = json.loads(lines[-2].removeprefix("data: "))["usage"]
        assert 1 <= usage["completion_tokens"] <= body["max_tokens"]
        self.generated += usage["completion_tokens"]

    async def completion(self) -> None:
        stop = self._rng.choice([[], ["."], ["and", "the"], [" a "]])
        body = {"prompt": self._rng.sample(STORIES, 2), "stop": stop, "max_tokens": self._rng.randint(1, 150)}
        body |= {"frequency_penalty": self._rng.choice([0, 0.5]), "logit_bias": {"300": -5}, "min_p": 0.05}
        for choice in (await self._post("/v1/completions", body))["choices"]:
            assert not any(text in choice["text"] for text in stop)

    async def shared_prefix(self) -> None:
        body = {"prompt": SHARED + str(self._rng.randint(0, 9)), "max_tokens": self._rng.randint(1, 60)}
        body |= {"cache_salt": self._rng.choice(["", "", "tenant"]), "prompt_lookup_num_tokens": 8, "temperature": 0}
        await self._post("/v1/completions", body)

    async def tokens_with_logprobs(self) -> None:
        prompt = [self._rng.randrange(300, 2000) for _ in range(self._rng.randint(1, 500))]
        body = {"prompt": prompt, "logprobs": 3, "max_tokens": 20, "ignore_eos": True}
        [choice] = (await self._post("/v1/completions", body))["choices"]
        assert len(choice["logprobs"]["tokens"]) == 20

    async def greedily(self) -> None:
        """The answer of the idle server, whatever else is going on."""
        prompt = self._rng.choice(sorted(self._greedy))
        body = {"prompt": prompt, "temperature": 0, "max_tokens": 60}
        assert (await self._post("/v1/completions", body))["choices"][0]["text"] == self._greedy[prompt]

    async def response(self) -> None:
        body = {"input": self._messages(), "max_output_tokens": self._rng.randint(1, 80)}
        assert (await self._post("/v1/responses", body))["status"] in ("completed", "incomplete")

    async def embed(self) -> None:
        texts = self._rng.sample(STORIES, self._rng.randint(1, 6))
        body = {"input": texts, "pooling": self._rng.choice(["last", "mean"])}
        assert len((await self._post("/v1/embeddings", body))["data"]) == len(texts)

    async def scored(self) -> None:
        prompt = [self._rng.randrange(300, 2000) for _ in range(self._rng.randint(2, 400))]
        body = {"prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": self._rng.choice([0, 1, 5])}
        [choice] = (await self._post("/v1/completions", body))["choices"]
        assert len(choice["logprobs"]["token_logprobs"]) >= len(prompt) and choice["text"]

    async def structured(self) -> None:
        """Whole or cut off in the middle: what is whole is as asked for."""
        schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
        form = {"type": "json_schema", "json_schema": {"name": "animal", "schema": schema, "strict": True}}
        body = {"messages": self._messages(), "response_format": form, "max_tokens": self._rng.randint(1, 80)}
        [choice] = (await self._post("/v1/chat/completions", body))["choices"]
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["message"]["content"])["age"], int)

    async def leave(self) -> None:
        """At any moment, in the middle of a stream or before the first byte."""
        body = {"prompt": SHARED * self._rng.randint(1, 5), "stream": self._rng.random() < 0.5, "max_tokens": 400}
        body |= {"n": self._rng.choice([1, 2]), "ignore_eos": True}
        with contextlib.suppress(asyncio.TimeoutError, httpx.HTTPError):
            await asyncio.wait_for(self._http.post("/v1/completions", json=body), self._rng.random() * 0.6)

    async def wrong(self) -> None:
        path, body, status = self._rng.choice(BAD)
        answer = await self._http.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == status, f"{path} {body[:60]!r}: {answer.status_code} {answer.text}"
