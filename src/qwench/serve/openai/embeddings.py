"""/v1/embeddings: the model's hidden states as vectors.

Called by routes.py.
"""

from __future__ import annotations

import base64
import time
from typing import Any

import numpy as np
from fastapi import Request

from qwench.runtime.pooling import PoolingParams
from qwench.runtime.sampling_params import SamplingParams
from qwench.serve.failures import ApiError
from qwench.serve.http.streaming import abort_when_gone
from qwench.serve.openai.completions import as_list
from qwench.serve.processes.engine_client import Generation
from qwench.serve.protocol.embeddings import EmbeddingRequest
from qwench.serve.service import ANY_LENGTH, Service, check_length, first_of, last_of

EMPTY = " "  # is embedded for an empty text, which has no token
ROOM = SamplingParams(max_tokens=1)  # the engine wants room for a token behind the prompt


async def embed(service: Service, body: EmbeddingRequest, request: Request) -> dict[str, Any]:
    """As many inputs at once as answers can run, which is how many places the request takes. Raises ApiError."""
    model = service.check_model(body.model)
    start_s, info = time.monotonic(), service.engine_info()
    inputs, max_len = [text or EMPTY for text in as_list(body.input)], info.limits.max_seq_len
    if body.dimensions is not None and body.dimensions > info.hidden_size:
        raise ApiError.bad_request(f"the model's embeddings have {info.hidden_size} dimensions", param="dimensions")
    width = min(len(inputs), info.max_num_seqs)
    release = service.admission.admit(width)
    vectors: list[str] = []
    try:
        truncate = body.truncate_prompt_tokens
        encoded = await service.encode(inputs, max_len if truncate is None else ANY_LENGTH)
        cut = last_of if body.truncation_side != "right" else first_of
        prompts = [cut(prompt, truncate, max_len - 1) for prompt in encoded]
        for prompt in prompts:
            check_length(prompt, max_len)
            info.limits.check(prompt, ROOM)
        for first in range(0, len(prompts), width):
            some = prompts[first : first + width]
            pooling = PoolingParams(body.pooling or "last")
            generation = service.engine.pool(
                some, pooling, start_s, lambda: None, salt=body.cache_salt or "", lora=model.lora
            )
            async with abort_when_gone(request.receive, generation):
                found = await _vectors(generation, len(some))
            if not all(found):
                break  # the client has gone
            vectors += found
    finally:
        release()
    num_tokens = sum(map(len, prompts))
    data = [{"object": "embedding", "index": i, "embedding": _shown(vector, body)} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return {"object": "list", "data": data, "model": model.name, "usage": usage}


async def _vectors(generation: Generation, count: int) -> list[str]:
    """In the order of the prompts; "" where the generation was aborted."""
    found = [""] * count
    while not generation.is_finished:
        for piece in await generation.take():
            found[piece.choice] = piece.embedding or ""
    return found


def _shown(vector: str, body: EmbeddingRequest) -> list[float] | str:
    """Of length 1 unless told otherwise, as numbers or as base64 of little-endian fp32."""
    values = np.frombuffer(base64.b64decode(vector), "<f4")
    values = values[: body.dimensions]
    norm = np.linalg.norm(values)
    if body.normalize is not False and norm > 0:
        values = values / norm
    if body.encoding_format == "base64":
        return base64.b64encode(values.astype("<f4").tobytes()).decode()
    numbers: list[float] = values.tolist()
    return numbers
