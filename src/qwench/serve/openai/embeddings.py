"""/v1/embeddings: the model's hidden states as vectors.

Called by routes.py.
"""

from __future__ import annotations

import base64
from typing import Any

from fastapi import Request

from qwench.runtime.pooling import PoolingParams
from qwench.serve.failures import ApiError
from qwench.serve.openai.completions import as_list
from qwench.serve.pooled import embedding_prompts, pool
from qwench.serve.protocol.embeddings import EmbeddingRequest
from qwench.serve.service import Service
from qwench.targets.target import Float32
from qwench.text.scoring import finish_embeddings

EMPTY = " "  # is embedded for an empty text, which has no token


async def embed(service: Service, body: EmbeddingRequest, request: Request) -> dict[str, Any]:
    """Raises ApiError, RequestError."""
    model, info = service.check_model(body.model), service.engine_info()
    if body.dimensions is not None and body.dimensions > info.hidden_size:
        raise ApiError.bad_request(f"the model's embeddings have {info.hidden_size} dimensions", param="dimensions")
    inputs, settings = [text or EMPTY for text in as_list(body.input)], info.embedding
    normalize = settings.normalize if body.normalize is None else body.normalize

    async def prompts() -> list[list[int]]:
        return await embedding_prompts(
            service, inputs, body.prompt_name, body.truncate_prompt_tokens, body.truncation_side
        )

    params = PoolingParams(body.pooling or settings.pooling)
    pooled = await pool(service, request, model, prompts, len(inputs), params, salt=body.cache_salt)
    vectors = [finish_embeddings(row[None], normalize, body.dimensions)[0] for row in pooled.rows]
    data = [{"object": "embedding", "index": i, "embedding": _shown(vector, body)} for i, vector in enumerate(vectors)]
    return {"object": "list", "data": data, "model": model.name, "usage": pooled.usage}


def _shown(vector: Float32, body: EmbeddingRequest) -> list[float] | str:
    """Numbers, or base64 of little-endian fp32."""
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
