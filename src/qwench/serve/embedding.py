"""Texts as vectors, for the embedding routes of every API. Knows no API's JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastapi import Request

from qwench.runtime.pooling import PoolingParams
from qwench.serve.failures import ApiError
from qwench.serve.pooled import Input, embedding_prompts, pool
from qwench.serve.service import ServedModel
from qwench.targets.target import Float32
from qwench.text.scoring import finish_embeddings

EMPTY = " "  # is embedded for an empty text, which has no token


@dataclass(frozen=True)
class EmbeddingWish:
    """As protocol/openai/embeddings.py has it; None: as the checkpoint says, or nothing of the kind."""

    pooling: Literal["last", "mean", "first"] | None = None
    normalize: bool | None = None
    dimensions: int | None = None
    prompt_name: str | None = None
    truncate: int | None = None
    truncation_side: str | None = None
    salt: str | None = None


async def embed(
    model: ServedModel, request: Request, inputs: Sequence[Input], wish: EmbeddingWish
) -> tuple[list[Float32], int]:
    """A vector of each input, [dimensions] fp32, and the tokens of all. Raises ApiError, RequestError."""
    service, info = model.service, model.service.engine_info()
    if wish.dimensions is not None and wish.dimensions > info.hidden_size:
        raise ApiError.bad_request(f"the model's embeddings have {info.hidden_size} dimensions", param="dimensions")
    settings = info.embedding
    normalize = settings.normalize if wish.normalize is None else wish.normalize

    async def prompts() -> list[list[int]]:
        texts = [text or EMPTY for text in inputs]
        return await embedding_prompts(service, texts, wish.prompt_name, wish.truncate, wish.truncation_side)

    params = PoolingParams(wish.pooling or settings.pooling)
    pooled = await pool(model, request, prompts, len(inputs), params, salt=wish.salt)
    vectors = [finish_embeddings(row[None], normalize, wish.dimensions)[0] for row in pooled.rows]
    return vectors, pooled.num_tokens
