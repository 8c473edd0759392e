"""/v1/classify and /v1/pooling: what the model gives for each input. Called by routes.py."""

from __future__ import annotations

import base64
import time
from typing import Any

import numpy as np
from fastapi import Request

from qwench.errors import RequestError
from qwench.runtime.pooling import PoolingParams
from qwench.serve.openai.completions import as_list
from qwench.serve.pooled import SCORES, embedding_prompts, pool, scored_prompts
from qwench.serve.protocol.pooling import ClassifyRequest, PoolingRequest
from qwench.serve.service import ServedModel, new_id
from qwench.targets.target import Float32
from qwench.text.scoring import activated, finish_embeddings

DEFAULT_TASKS = {"sequence_classification": "classify", "token_classification": "token_classify"}


async def classify(model: ServedModel, body: ClassifyRequest, request: Request) -> dict[str, Any]:
    """Raises ApiError, RequestError."""
    service, inputs = model.service, as_list(body.input)
    info = service.engine_info()
    if (kind := info.limits.head.kind) != "sequence_classification":
        raise RequestError(f"this model's head is {kind!r}, and classifying needs one for sequence_classification")
    pooled = await pool(
        model, request, lambda: scored_prompts(service, inputs), len(inputs), SCORES, salt=body.cache_salt
    )
    labels, data = info.classifier.labels, []
    for i, row in enumerate(pooled.rows):
        shares = activated(row[None], body.use_activation is not False)[0]
        label = labels[int(shares.argmax())]
        data.append({"index": i, "label": label, "probs": shares.tolist(), "num_classes": len(shares)})
    return _listed("classify", model.name, data, pooled.usage)


async def give_rows(model: ServedModel, body: PoolingRequest, request: Request) -> dict[str, Any]:
    """Raises ApiError, RequestError."""
    service, inputs = model.service, as_list(body.input)
    info = service.engine_info()
    task = body.task or DEFAULT_TASKS.get(info.limits.head.kind, "token_embed")
    embeds = task in ("embed", "token_embed")
    if not embeds and info.limits.head.kind != f"{'token' if task == 'token_classify' else 'sequence'}_classification":
        raise RequestError(f"the task {task} needs another head than this model's, {info.limits.head.kind!r}")
    if body.dimensions is not None and not embeds:
        raise RequestError(f"dimensions are of embeddings; the task is {task}")
    one = info.embedding.pooling if embeds else "last"
    params = PoolingParams("all" if task.startswith("token") else one, "hidden" if embeds else "scores")

    async def prompts() -> list[list[int]]:
        if embeds:
            return await embedding_prompts(service, inputs, None)
        if task == "classify":
            return await scored_prompts(service, inputs)
        return await service.encode(inputs, info.limits.max_seq_len)

    pooled = await pool(model, request, prompts, len(inputs), params, salt=body.cache_salt)
    data = []
    for i, row in enumerate(pooled.rows):
        rows = row if row.ndim == 2 else row[None]
        if embeds:
            normalize = info.embedding.normalize if body.normalize is None else body.normalize
            rows = finish_embeddings(rows, normalize and task == "embed", body.dimensions)
        else:
            rows = activated(rows, bool(body.use_activation))
        data.append({"index": i, "object": "pooling", "data": _shown(rows if row.ndim == 2 else rows[0], body)})
    return _listed("pooling", model.name, data, pooled.usage)


def _listed(kind: str, model: str, data: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
    created = int(time.time())
    return {"id": new_id(kind), "object": "list", "created": created, "model": model, "data": data, "usage": usage}


def _shown(numbers: Float32, body: PoolingRequest) -> Any:
    if body.encoding_format == "base64":
        return base64.b64encode(np.ascontiguousarray(numbers, "<f4").tobytes()).decode()
    return numbers.tolist()
