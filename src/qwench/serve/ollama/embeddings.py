"""/api/embed and /api/embeddings: texts as vectors. Called by routes.py."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from qwench.serve.embedding import EmbeddingWish, embed
from qwench.serve.ollama.reply import Stopwatch
from qwench.serve.protocol.ollama.requests import OllamaEmbeddingsRequest, OllamaEmbedRequest
from qwench.serve.service import ServedModel


async def embed_all(model: ServedModel, body: OllamaEmbedRequest, request: Request) -> dict[str, Any]:
    """Each input's vector, of length 1. Raises ApiError, RequestError."""
    watch = Stopwatch()
    inputs = [body.input] if isinstance(body.input, str) else body.input
    truncate = None if body.truncate is False else -1
    wish = EmbeddingWish(normalize=True, dimensions=body.dimensions, truncate=truncate, truncation_side="right")
    watch.queued()
    vectors, num_tokens = await embed(model, request, inputs, wish) if inputs else ([], 0)
    times = watch.durations()
    return {
        "model": body.model or model.name, "embeddings": [vector.tolist() for vector in vectors],
        "total_duration": times["total_duration"], "load_duration": times["load_duration"],
        "prompt_eval_count": num_tokens,
    }  # fmt: skip


async def embed_one(model: ServedModel, body: OllamaEmbeddingsRequest, request: Request) -> dict[str, Any]:
    """Nothing of an empty text. Raises ApiError, RequestError."""
    if not body.prompt:
        return {"embedding": []}
    wish = EmbeddingWish(truncate=-1, truncation_side="right")
    vectors, _ = await embed(model, request, [body.prompt], wish)
    return {"embedding": [number for vector in vectors for number in vector.tolist()]}
