"""What Ollama's routes answer, as schemas; see shared/reply.py.

Durations are in nanoseconds.
"""

from __future__ import annotations

from typing import Any, Literal

from qwench.serve.protocol.openai.replies import ChosenTokenReply
from qwench.serve.protocol.shared.reply import Reply


class OllamaError(Reply):
    """An answer other than 2xx."""

    error: str


class OllamaFunction(Reply):
    index: int
    name: str
    arguments: dict[str, Any]


class OllamaToolCall(Reply):
    """A call that the model asks for."""

    id: str
    function: OllamaFunction


class OllamaMessage(Reply):
    """thinking: the thought before the answer, if there was one."""

    role: Literal["assistant"]
    content: str
    thinking: str | None = None
    tool_calls: list[OllamaToolCall] | None = None


class OllamaAnswer(Reply):
    """The end of an answer has done_reason, counts and durations; what only loads the model has done_reason alone."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load", "unload"] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    logprobs: list[ChosenTokenReply] | None = None


class OllamaChat(OllamaAnswer):
    message: OllamaMessage


class OllamaText(OllamaAnswer):
    """context: the tokens so far, for the next request."""

    response: str
    thinking: str | None = None
    context: list[int] | None = None


class ModelDetails(Reply):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class ListedModel(Reply):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: ModelDetails


class Tags(Reply):
    """All that requests can name."""

    models: list[ListedModel]


class RunningModel(ListedModel):
    expires_at: str
    size_vram: int
    context_length: int


class Running(Reply):
    """Those in memory."""

    models: list[RunningModel]


class ShownModel(Reply):
    """template: of chats, Jinja. model_info: as GGUF names such things."""

    modelfile: str
    parameters: str
    template: str
    details: ModelDetails
    model_info: dict[str, str | int | float]
    capabilities: list[Literal["completion", "tools", "thinking", "insert", "embedding"]]
    modified_at: str


class OllamaVersion(Reply):
    version: str


class PullStatus(Reply):
    status: Literal["pulling manifest", "success"]


class OllamaEmbeddings(Reply):
    """A vector of length 1 of each input."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbedding(Reply):
    embedding: list[float]
