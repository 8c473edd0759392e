"""/v1/score and /v1/rerank: how well texts answer a query. Called by routes.py."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from fastapi import Request

from qwench.errors import RequestError
from qwench.runtime.pooling import PoolingParams
from qwench.serve.failures import ApiError
from qwench.serve.pooled import SCORES, Pooled, embedding_prompts, pool
from qwench.serve.protocol.pooling import RerankRequest, ScoreRequest
from qwench.serve.service import ServedModel, new_id
from qwench.targets.target import Float32
from qwench.text.scoring import activated, finish_embeddings, prompts_of_search

Pair = tuple[str, str]


async def score(model: ServedModel, body: ScoreRequest, request: Request) -> dict[str, Any]:
    """Raises ApiError, RequestError."""
    queries = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    documents = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    if len(queries) == 1:
        queries = queries * len(documents)
    if len(queries) != len(documents):
        raise ApiError.bad_request(
            f"text_1 has {len(queries)} texts and text_2 {len(documents)}; give one and any number, or as many of each",
            param="text_1",
        )  # fmt: skip
    pairs = list(zip(queries, documents, strict=True))
    scores, pooled = await _scores(model, pairs, body, request)
    data = [{"index": i, "object": "score", "score": value} for i, value in enumerate(scores)]
    return {
        "id": new_id("score"), "object": "list", "created": int(time.time()), "model": model.name, "data": data,
        "usage": pooled.usage,
    }  # fmt: skip


async def rerank(model: ServedModel, body: RerankRequest, request: Request) -> dict[str, Any]:
    """Raises ApiError, RequestError."""
    texts = [each if isinstance(each, str) else each.text for each in body.documents]
    scores, pooled = await _scores(model, [(body.query, text) for text in texts], body, request)
    best = np.argsort(-np.array(scores), kind="stable")[: body.top_n or None].tolist()
    shown = body.return_documents is not False
    results = [
        {"index": i, "relevance_score": scores[i]} | ({"document": {"text": texts[i]}} if shown else {}) for i in best
    ]
    return {"id": new_id("rerank"), "model": model.name, "results": results, "usage": pooled.usage}


async def _scores(
    model: ServedModel, pairs: list[Pair], body: ScoreRequest | RerankRequest, request: Request
) -> tuple[list[float], Pooled]:
    """As LLM.score: of a classifier with one label, or the cosines of embeddings."""
    service, info = model.service, model.service.engine_info()
    if info.limits.head.kind != "sequence_classification":
        return await _cosines(model, pairs, body.cache_salt, request)
    if (count := info.limits.head.num_labels) != 1:
        raise RequestError(f"a model with {count} labels gives no score of two texts; classify them")

    async def prompts() -> list[list[int]]:
        found = await service.text.encode_pairs(pairs, info.limits.max_seq_len)
        return [info.classifier.scored(ids) for ids in found] if info.limits.is_causal else found

    pooled = await pool(model, request, prompts, len(pairs), SCORES, salt=body.cache_salt)
    rows: Float32 = np.array(pooled.rows, np.float32).reshape(-1, 1)
    return activated(rows, body.use_activation is not False)[:, 0].tolist(), pooled


async def _cosines(
    model: ServedModel, pairs: list[Pair], salt: str | None, request: Request
) -> tuple[list[float], Pooled]:
    """Each text is embedded once, with the checkpoint's prompt for its side."""
    service, info = model.service, model.service.engine_info()
    for_query, for_document = prompts_of_search(info.embedding)
    queries = list(dict.fromkeys(query for query, _ in pairs))
    documents = list(dict.fromkeys(document for _, document in pairs))

    async def prompts() -> list[list[int]]:
        return [
            *await embedding_prompts(service, queries, for_query),
            *await embedding_prompts(service, documents, for_document),
        ]

    count, params = len(queries) + len(documents), PoolingParams(info.embedding.pooling)
    pooled = await pool(model, request, prompts, count, params, salt=salt)
    if len(pooled.rows) < count:
        return [], pooled
    rows = finish_embeddings(np.stack(pooled.rows), True, None)
    of_query = dict(zip(queries, rows))
    of_document = dict(zip(documents, rows[len(queries) :]))
    return [float(of_query[query] @ of_document[document]) for query, document in pairs], pooled
