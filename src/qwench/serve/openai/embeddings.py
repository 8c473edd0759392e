"""/v1/embeddings: the model's hidden states as vectors.

Called by routes.py.
"""

from __future__ import annotations

import base64
from typing import Any

from fastapi import Request

from qwench.serve.embedding import EmbeddingWish, embed
from qwench.serve.openai.completions import as_list
from qwench.serve.protocol.openai.embeddings import EmbeddingRequest
from qwench.serve.service import ServedModel
from qwench.targets.target import Float32


async def answer_embeddings(model: ServedModel, body: EmbeddingRequest, request: Request) -> dict[str, Any]:
    """Raises ApiError, RequestError."""
    wish = EmbeddingWish(
        body.pooling, body.normalize, body.dimensions, body.prompt_name, body.truncate_prompt_tokens,
        body.truncation_side, body.cache_salt,
    )  # fmt: skip
    vectors, num_tokens = await embed(model, request, as_list(body.input), wish)
    data = [{"object": "embedding", "index": i, "embedding": _shown(vector, body)} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return {"object": "list", "data": data, "model": model.name, "usage": usage}


def _shown(vector: Float32, body: EmbeddingRequest) -> list[float] | str:
    """Numbers, or base64 of little-endian fp32."""
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
