"""Routes that embed, classify and rank, each a line or two; what they do is in the file beside. Called by app.py."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from qwench.serve.http.document import answer_route
from qwench.serve.models.models import Models
from qwench.serve.pooling.rank import rerank, score
from qwench.serve.pooling.rows import classify, give_rows
from qwench.serve.protocol import pooling

RERANK_PATHS = ("/v1/rerank", "/rerank", "/v2/rerank")  # vLLM's and Jina's, the bare one, Cohere's
SCORE_PATHS, CLASSIFY_PATHS, POOLING_PATHS = (
    ("/v1/score", "/score"),
    ("/v1/classify", "/classify"),
    ("/v1/pooling", "/pooling"),
)
ANSWER_PATHS = frozenset((*RERANK_PATHS, *SCORE_PATHS, *CLASSIFY_PATHS, *POOLING_PATHS))


def add_routes(app: FastAPI, models: Models) -> None:
    """Each under all its names; the document has the first."""

    async def rerank_route(body: pooling.RerankRequest, request: Request) -> Response:
        async with models.use(body.model, request, body.keep_alive) as model:
            return JSONResponse(await rerank(model, body, request))

    async def score_route(body: pooling.ScoreRequest, request: Request) -> Response:
        async with models.use(body.model, request, body.keep_alive) as model:
            return JSONResponse(await score(model, body, request))

    async def classify_route(body: pooling.ClassifyRequest, request: Request) -> Response:
        async with models.use(body.model, request, body.keep_alive) as model:
            return JSONResponse(await classify(model, body, request))

    async def pooling_route(body: pooling.PoolingRequest, request: Request) -> Response:
        async with models.use(body.model, request, body.keep_alive) as model:
            return JSONResponse(await give_rows(model, body, request))

    for paths, endpoint, reply in (
        (RERANK_PATHS, rerank_route, pooling.Ranking),
        (SCORE_PATHS, score_route, pooling.ScoreList),
        (CLASSIFY_PATHS, classify_route, pooling.ClassList),
        (POOLING_PATHS, pooling_route, pooling.PoolingList),
    ):
        for path in paths:
            app.post(path, responses=answer_route(reply, stream=None), include_in_schema=path == paths[0])(endpoint)
