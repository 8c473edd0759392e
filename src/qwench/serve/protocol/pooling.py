"""The bodies of /v1/score, /v1/rerank, /v1/classify and /v1/pooling, and their replies, as vLLM, Jina and Cohere have
them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from qwench.serve.protocol.openai.completions import Tokens
from qwench.serve.protocol.openai.replies import EmbeddingUsage
from qwench.serve.protocol.shared.reply import Reply
from qwench.serve.protocol.validation.body import Body, Count, Flag, ModelBody

MAX_INPUTS = 2048
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
Inputs = str | Texts | Tokens | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
CacheSalt = Annotated[str, Field(max_length=256)]
Encoding = Literal["float", "base64"]


class PooledBody(ModelBody):
    """What all have."""

    places = ("request", "pooling")
    cache_salt: CacheSalt | None = None


class ClassifyRequest(PooledBody):
    """use_activation: false: what the head says, before softmax or sigmoid."""

    input: Inputs
    use_activation: Flag | None = None


class ScoreRequest(PooledBody):
    """One text beside each of the others, or two lists of equal length."""

    text_1: str | Texts
    text_2: str | Texts
    use_activation: Flag | None = None


class Document(Body):
    text: str


class RerankRequest(PooledBody):
    """top_n: how many of the best are wanted; 0 or none: all."""

    query: str
    documents: Annotated[list[str | Document], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    top_n: Annotated[int, Field(ge=0)] | None = None
    return_documents: Flag | None = None
    use_activation: Flag | None = None


class PoolingRequest(PooledBody):
    """task: embed and classify give a row for each input, the others one for each of its tokens. Default: what the
    model's head is for: classify, token_classify or, without one, token_embed."""

    input: Inputs
    task: Literal["embed", "classify", "token_embed", "token_classify"] | None = None
    encoding_format: Encoding | None = None
    dimensions: Count | None = None
    normalize: Flag | None = None
    use_activation: Flag | None = None


class PooledReply(Reply):
    id: str
    object: Literal["list"]
    created: int
    model: str
    usage: EmbeddingUsage


class ClassEntry(Reply):
    """label: that of the largest share. probs: of each label."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassList(PooledReply):
    """Of /v1/classify."""

    data: list[ClassEntry]


class ScoreEntry(Reply):
    index: int
    object: Literal["score"]
    score: float


class ScoreList(PooledReply):
    """Of /v1/score."""

    data: list[ScoreEntry]


class PoolingEntry(Reply):
    """data: numbers, a list of them for each token, or base64 of little-endian fp32."""

    index: int
    object: Literal["pooling"]
    data: list[float] | list[list[float]] | str


class PoolingList(PooledReply):
    """Of /v1/pooling."""

    data: list[PoolingEntry]


class RankedDocument(Reply):
    text: str


class Ranked(Reply):
    """index: of the document in the request."""

    index: int
    relevance_score: float
    document: RankedDocument | None = None


class Ranking(Reply):
    """Of /v1/rerank, best first."""

    id: str
    model: str
    results: list[Ranked]
    usage: EmbeddingUsage
