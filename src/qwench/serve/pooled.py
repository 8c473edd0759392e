"""From the texts of a request to what the model says of them: embeddings and scores, for every route that gives any.

What `text/pooled.py` does for LLM, over the processes of the server; knows no API's JSON. The one path beside
`Service.submit`.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
from fastapi import Request

from qwench.errors import RequestError
from qwench.runtime.pooling import PoolingParams
from qwench.serve.failures import ApiError
from qwench.serve.http.streaming import abort_when_gone
from qwench.serve.processes.engine_client import EngineInfo, Generation
from qwench.serve.service import ANY_LENGTH, ServedModel, Service, first_of, last_of
from qwench.targets.target import Float32
from qwench.text.scoring import embedding_messages, prompt_text

Input = str | list[int]
SCORES = PoolingParams(source="scores")


@dataclass(frozen=True)
class Pooled:
    """rows: what each prompt gets, [width] fp32 or, of all its tokens, [num_tokens, width]. Fewer than prompts when the
    client has gone."""

    rows: list[Float32]
    num_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        return {"prompt_tokens": self.num_tokens, "total_tokens": self.num_tokens}


async def pool(
    model: ServedModel, request: Request, make_prompts: Callable[[], Awaitable[list[list[int]]]], count: int,
    params: PoolingParams, *, salt: str | None = None,
) -> Pooled:  # fmt: skip
    """For `count` prompts, which are made once there is room; as many at once as answers can run, which is how many
    places the request takes. Raises ApiError, and RequestError for what the model doesn't give."""
    start_s, service, info = time.monotonic(), model.service, model.service.engine_info()
    width = min(count, info.max_num_seqs)
    release = service.admission.admit(width)
    rows: list[Float32] = []
    try:
        prompts = await make_prompts()
        for prompt in prompts:
            _check_length(prompt, info)
            info.limits.check_pooled(prompt, params.source)
        for first in range(0, len(prompts), width):
            some = prompts[first : first + width]
            generation = service.engine.pool(
                some, params, start_s, lambda: None, salt=salt or "", lora=model.lora
            )  # fmt: skip
            async with abort_when_gone(request.receive, generation):
                found = await _rows(generation, some, params)
            if len(found) < len(some):
                break  # the client has gone
            rows += found
    finally:
        release()
    return Pooled(rows, sum(map(len, prompts)))


def _check_length(prompt: list[int], info: EngineInfo) -> None:
    """Raises ApiError with the code that clients look for."""
    if len(prompt) > info.limits.max_seq_len:
        raise ApiError.bad_request(
            f"This model's maximum context length is {info.limits.max_seq_len} tokens, and an input has {len(prompt)}. "
            "Please shorten it.",
            param="input", code="context_length_exceeded",
        )  # fmt: skip


async def _rows(generation: Generation, prompts: list[list[int]], params: PoolingParams) -> list[Float32]:
    """In the order of the prompts; those before the first that was aborted."""
    found: list[Float32 | None] = [None] * len(prompts)
    while not generation.is_finished:
        for piece in await generation.take():
            if piece.embedding is not None:
                numbers = np.frombuffer(base64.b64decode(piece.embedding), "<f4").astype(np.float32)
                is_whole = params.pooling == "all"
                found[piece.choice] = numbers.reshape(len(prompts[piece.choice]), -1) if is_whole else numbers
    rows: list[Float32] = []
    for row in found:
        if row is None:
            break
        rows.append(row)
    return rows


async def embedding_prompts(
    service: Service, inputs: Sequence[Input], prompt_name: str | None, truncate: int | None = None,
    truncation_side: str | None = None,
) -> list[list[int]]:  # fmt: skip
    """The tokens of inputs to be embedded, as the checkpoint's settings have it. truncate: as of `last_of`, or of
    `first_of` for the side "right". Raises RequestError for a prompt that there isn't."""
    info = service.engine_info()
    if prompt_name and not all(isinstance(text, str) for text in inputs):
        raise RequestError("a prompt by name goes before texts; put its tokens before token ids yourself")
    before, room = prompt_text(info.embedding, prompt_name), info.limits.max_seq_len
    longest = room if truncate is None else ANY_LENGTH
    if info.embedding.through_chat:
        template = {"add_generation_prompt": False}
        prompts = [
            await service.text.chat(embedding_messages(before, text), template, longest)
            if isinstance(text, str)
            else text
            for text in inputs
        ]
    else:
        texts = [before + text if isinstance(text, str) else text for text in inputs]
        prompts = await service.encode(texts, longest)
    cut = first_of if truncation_side == "right" else last_of
    return [cut(prompt, truncate, room) for prompt in prompts]


async def scored_prompts(service: Service, inputs: Sequence[Input]) -> list[list[int]]:
    """The tokens of inputs to be classified."""
    info = service.engine_info()
    prompts = await service.encode(inputs, info.limits.max_seq_len)
    return [info.classifier.scored(ids) for ids in prompts] if info.limits.is_causal else prompts
