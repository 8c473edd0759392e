"""What OpenAI's routes answer, as schemas; see shared/reply.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from qwench.runtime.outputs import FinishReason
from qwench.serve.protocol.shared.reply import Reply


class PromptTokensDetails(Reply):
    """cached_tokens: of the prompts, found in the KV cache of earlier requests."""

    cached_tokens: int


class CompletionTokensDetails(Reply):
    """reasoning_tokens: of thoughts and their tags."""

    reasoning_tokens: int


class Usage(Reply):
    """Each prompt counts once, however many answers it gets; each generated token counts, the last one too."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TokenReply(Reply):
    """A token and its log-probability; `bytes` where its text is but a part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenTokenReply(TokenReply):
    """The token of the answer, with the likeliest ones in its place."""

    top_logprobs: list[TokenReply]


class ChatLogprobs(Reply):
    """One entry for each token of the answer."""

    content: list[ChosenTokenReply]
    refusal: None


class FunctionCall(Reply):
    """arguments: JSON, as the model wrote it."""

    name: str
    arguments: str


class ToolCall(Reply):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatAnswer(Reply):
    """The turn that the model wrote. reasoning_content, and the same as reasoning: its thought, if it had one."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ChatChoice(Reply):
    """stop_reason: the stop string, or the token of stop_token_ids, that ended the answer; "thinking" where it ended,
    by itself or for its length, before its thought did."""

    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | Literal["tool_calls"]
    stop_reason: int | str | None


class RankedToken(Reply):
    """rank: 1 is the likeliest; null of a token that isn't among the likeliest shown."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, RankedToken] | None]  # by token id, for each token of the prompt; null for the first


class ChatCompletion(Reply):
    """Of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = None


class CompletionLogprobs(Reply):
    """Lists with an entry for each token, null for the first one of an echoed prompt; text_offset: characters of the
    text before it."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Reply):
    """stop_reason: the stop string, or the token of stop_token_ids, that ended the answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None
    prompt_logprobs: PromptLogprobs | None = None


class Completion(Reply):
    """Of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class EmbeddingUsage(Reply):
    prompt_tokens: int
    total_tokens: int


class Embedding(Reply):
    """embedding: numbers, or base64 of little-endian fp32 where that was asked for."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(Reply):
    """Of /v1/embeddings."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class OutputText(Reply):
    """A part of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ChosenTokenReply]


class OutputMessage(Reply):
    """The turn that the model wrote."""

    type: Literal["message"]
    id: str
    status: Literal["completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class ReasoningText(Reply):
    """A part of a thought."""

    type: Literal["reasoning_text"]
    text: str


class OutputReasoning(Reply):
    """The thought before the answer."""

    type: Literal["reasoning"]
    id: str
    status: Literal["completed", "incomplete"]
    summary: Annotated[list[Any], Field(max_length=0)]
    content: list[ReasoningText]


class OutputFunctionCall(Reply):
    """A call that the model asks for."""

    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Literal["completed", "incomplete"]


class InputTokensDetails(PromptTokensDetails):
    cache_write_tokens: int


class ResponseUsage(Reply):
    """The same counts as `Usage` under this endpoint's names."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: CompletionTokensDetails
    total_tokens: int


class ResponseObject(Reply):
    """Of /v1/responses: the answer, and the request's own fields again."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[Annotated[OutputReasoning | OutputMessage | OutputFunctionCall, Field(discriminator="type")]]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: dict[str, str | None]
    store: Literal[False]
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float | None
    top_logprobs: int | None
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage
    user: str | None
    metadata: dict[str, Any]


class Tokens(Reply):
    """Of /tokenize. token_strs: the tokens as text, where they were asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Text(Reply):
    """Of /detokenize."""

    prompt: str


class ModelEntry(Reply):
    """max_model_len: tokens of prompt and answer; not there while a server's only model is being loaded. parent: of an
    adapter, the model that it changes. state: an unloaded model is loaded when a request asks for it. type,
    display_name, created_at: the same as Anthropic has it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["qwench"]
    type: Literal["model"]
    display_name: str
    created_at: str
    state: Literal["unloaded", "loading", "loaded"]
    max_model_len: int | None = None
    parent: str | None = None


class ModelList(Reply):
    """Of /v1/models. has_more, first_id, last_id: what Anthropic's client turns pages by."""

    object: Literal["list"]
    data: list[ModelEntry]
    has_more: Literal[False]
    first_id: str
    last_id: str
