"""Sends the requests of a plan to a server and notes when what came.

OpenAI's /v1/completions, streamed. Prompts are random words, as many as give the number of tokens asked for; how many
tokens a word has is learnt from the server's own count in a first request. Answers are asked to go on past any end of
text (`ignore_eos`, which qwench, llama.cpp and vLLM know), so that all servers do the same work. Knows no figures.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qwench.errors import ConfigError, QwenchError
from qwench.evaluate.load.plan import LoadPlan, Request

if TYPE_CHECKING:
    import httpx

# Short and common, so that most tokenizers have them whole.
TEXT = (
    "the day was long and they went down to see what time had done with all that water on the other side of our "
    "small house where people come from far away just to look at a tree which no one could ever make any use of"
)
WORDS = TEXT.split()
CALIBRATION_WORDS = 200


class ServerError(QwenchError):
    """The server can't be reached, or refuses what every run needs."""


@dataclass
class Outcome:
    """One request: seconds on the run's clock. due_s: when it should have been sent, which in an open loop is what its
    user waits from. token_s: when pieces of text came. num_prompt, num_answer: tokens, as the server counts them."""

    request: Request
    due_s: float
    sent_s: float = 0.0
    end_s: float = 0.0
    token_s: list[float] = field(default_factory=list)
    num_prompt: int = 0
    num_answer: int = 0
    status: int = 0
    error: str | None = None


class LoadClient:
    """url: of the server, with or without /v1. `model` is its first one unless given."""

    def __init__(self, url: str, *, model: str | None, key: str | None, timeout_s: float, stop_early: bool) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._model, self._timeout_s, self._stop_early = model, timeout_s, stop_early
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._tokens_per_word = 1.0
        self._extra_tokens = 0.0

    async def run(self, plan: LoadPlan, seed: int, on_done: Callable[[int], None]) -> list[Outcome]:
        """All outcomes, in the order of the plan's requests. on_done: told how many are over. Raises ServerError."""
        try:
            import httpx
        except ImportError:
            raise ConfigError('bench-serve needs httpx: pip install "qwench[load]"') from None
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(
            base_url=self._url, headers=self._headers, limits=limits, timeout=self._timeout_s
        ) as http:
            await self._prepare(http)
            words = random.Random(seed)
            prompts = [self._prompt(request.num_prompt, words) for request in plan.requests]
            start = time.perf_counter()
            outcomes = [Outcome(request, request.at_s or 0.0) for request in plan.requests]
            done = 0

            async def send(index: int) -> None:
                nonlocal done
                await self._send(http, prompts[index], outcomes[index], start)
                done += 1
                on_done(done)

            await (_closed if plan.users else _open)(plan, outcomes, send, start)
            return outcomes

    async def _prepare(self, http: httpx.AsyncClient) -> None:
        """Learns the model's name and how many tokens a word has, which warms the server up as well."""
        try:
            if self._model is None:
                answer = await http.get("/v1/models")
                answer.raise_for_status()
                self._model = answer.json()["data"][0]["id"]
            sizes = []
            for count in (1, CALIBRATION_WORDS):
                prompt = " ".join(random.Random(count).choices(WORDS, k=count))
                body = {"model": self._model, "prompt": prompt, "max_tokens": 1}
                answer = await http.post("/v1/completions", json=body)
                answer.raise_for_status()
                sizes.append(answer.json()["usage"]["prompt_tokens"])
        except Exception as error:
            raise ServerError(f"{self._url} doesn't answer as OpenAI's API does: {_reason(error)}") from None
        self._tokens_per_word = (sizes[1] - sizes[0]) / (CALIBRATION_WORDS - 1)
        self._extra_tokens = sizes[0] - self._tokens_per_word

    def _prompt(self, num_tokens: int, words: random.Random) -> str:
        """Different from the first word on, so that no prefix cache helps."""
        count = max(1, round((num_tokens - self._extra_tokens) / self._tokens_per_word))
        return " ".join(words.choices(WORDS, k=count))

    async def _send(self, http: httpx.AsyncClient, prompt: str, outcome: Outcome, start: float) -> None:
        body: dict[str, Any] = {
            "model": self._model, "prompt": prompt, "max_tokens": outcome.request.num_answer, "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        if not self._stop_early:
            body["ignore_eos"] = True
        outcome.sent_s = time.perf_counter() - start
        try:
            async with http.stream("POST", "/v1/completions", json=body) as answer:
                outcome.status = answer.status_code
                if answer.status_code != 200:
                    await answer.aread()
                    outcome.error = f"status {answer.status_code}: {_message(answer.content)}"
                else:
                    await _read(answer, outcome, start)
        except Exception as error:  # whatever a server under load may do to a connection is a figure, not our end
            outcome.error = _reason(error)
        outcome.end_s = time.perf_counter() - start


async def _read(answer: httpx.Response, outcome: Outcome, start: float) -> None:
    """Notes when pieces came, and the server's own count of tokens."""
    async for line in answer.aiter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:
            outcome.error = str(chunk["error"].get("message", chunk["error"]))
            return
        if chunk.get("choices") and chunk["choices"][0].get("text"):
            outcome.token_s.append(time.perf_counter() - start)
        if chunk.get("usage"):
            outcome.num_prompt = chunk["usage"]["prompt_tokens"]
            outcome.num_answer = chunk["usage"]["completion_tokens"]
    outcome.num_answer = outcome.num_answer or len(outcome.token_s)
    if not outcome.token_s:
        outcome.error = "an empty answer"


async def _closed(plan: LoadPlan, outcomes: list[Outcome], send: Callable[[int], Any], start: float) -> None:
    """Each user takes the next request when the last one is answered."""
    rest = iter(range(len(outcomes)))

    async def user() -> None:
        for index in rest:
            outcomes[index].due_s = time.perf_counter() - start
            await send(index)

    assert plan.users is not None
    await asyncio.gather(*(user() for _ in range(plan.users)))


async def _open(plan: LoadPlan, outcomes: list[Outcome], send: Callable[[int], Any], start: float) -> None:
    """Each request goes out when it is due."""

    async def later(index: int) -> None:
        await asyncio.sleep(max(0.0, outcomes[index].due_s - (time.perf_counter() - start)))
        await send(index)

    await asyncio.gather(*(later(index) for index in range(len(outcomes))))


def _message(content: bytes) -> str:
    try:
        return str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return content[:200].decode("utf-8", "replace")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
