"""/v1/completions: texts or tokens to go on with, several at once, or a gap to fill.

Called by routes.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.serve.answers import Answers
from qwench.serve.failures import ApiError
from qwench.serve.openai.logprobs import check_prompt_logprobs, completion_logprobs, prompt_logprobs
from qwench.serve.openai.reply import Reply
from qwench.serve.processes.engine_client import EngineInfo, Piece
from qwench.serve.protocol.openai.completions import DEFAULT_MAX_TOKENS, CompletionRequest
from qwench.serve.service import ANY_LENGTH, ServedModel, Service


async def answer_completion(model: ServedModel, body: CompletionRequest, request: Request) -> Response:
    """Raises ApiError or RequestError."""
    service, info = model.service, model.service.engine_info()
    params, max_len = _params(body, info), info.limits.max_seq_len
    if body.truncate_prompt_tokens is not None:
        max_len = ANY_LENGTH
    prompts, view = as_list(body.prompt), _unchanged if body.max_tokens != 0 else Piece.without_answer
    if body.suffix is not None and (len(prompts) > 1 or not isinstance(prompts[0], str)):
        raise ApiError.bad_request("suffix goes with one prompt, given as text", param="suffix")

    async def make_prompts() -> list[list[int]]:
        if body.suffix is not None:
            return [await service.text.fill(str(prompts[0]), body.suffix, max_len)]
        return await service.encode(prompts, max_len)

    generation, token_ids = await service.submit(
        make_prompts, len(prompts), params, body.cache_salt, view=view, format_field=body.format_field,
        lora=model.lora, truncate=body.truncate_prompt_tokens,
    )  # fmt: skip
    try:
        echoes = [await _text(service, prompt) if body.echo else "" for prompt in prompts]
    except BaseException:
        generation.abort()
        raise
    reply = _CompletionReply(model.name, body, Answers([len(ids) for ids in token_ids], params.n), echoes, params.n)
    return await reply.response(generation, request, is_stream=bool(body.stream))


def _params(body: CompletionRequest, info: EngineInfo) -> SamplingParams:
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError.bad_request("best_of must be n; ask for n answers and choose among them", param="best_of")
    check_prompt_logprobs(body.prompt_logprobs, body.stream)
    if body.echo and body.logprobs is not None and body.suffix is not None:
        raise ApiError.bad_request("echo with logprobs shows the prompt as it is; it can't have a suffix", param="echo")
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    if max_tokens == 0 and not body.echo:
        raise ApiError.bad_request("max_tokens must be 1 or more, or 0 with echo", param="max_tokens")
    # The engine gives the prompt's log-probabilities with the first token of the answer.
    params = body.sampling_params(info.defaults, max_tokens=max_tokens or 1, logprobs=body.num_logprobs)
    of_prompt = body.num_logprobs if body.echo and body.prompt_logprobs is None else body.prompt_logprobs
    return dataclasses.replace(params, prompt_logprobs=of_prompt)


def _unchanged(piece: Piece) -> Piece:
    return piece


def as_list(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """One prompt or several, as several."""
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


async def _text(service: Service, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else await service.text.decode(prompt)


class _CompletionReply(Reply):
    """echoes: text before each prompt's answers."""

    def __init__(self, model: str, body: CompletionRequest, answers: Answers, echoes: list[str], n: int) -> None:
        super().__init__("cmpl", "text_completion", model, answers, body.stream_options)
        self._echoes = [echo for echo in echoes for _ in range(n)]
        self._n, self._has_logprobs = n, body.logprobs is not None
        self._echoes_logprobs, self._has_prompt_logprobs = bool(body.echo), body.prompt_logprobs is not None
        self._offsets = [0] * len(answers.choices)  # characters of tokens whose log-probabilities were streamed

    def choice(self, index: int) -> dict[str, Any]:
        answer = self.answers.choices[index]
        of_prompt = self.answers.prompt_logprobs[index // self._n]
        logprobs = [*of_prompt, *answer.logprobs] if self._echoes_logprobs else answer.logprobs
        shown = {"prompt_logprobs": prompt_logprobs(of_prompt)} if self._has_prompt_logprobs else {}
        return {
            **shown,
            "index": index,
            "text": self._echoes[index] + answer.text,
            "logprobs": completion_logprobs(logprobs, 0) if self._has_logprobs else None,
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }

    def beginning(self) -> bytes:
        """The prompts, unless their log-probabilities are to come with them."""
        echoes = [] if self._has_logprobs else self._echoes
        return b"".join(self.chunk(i, {"text": echo}) for i, echo in enumerate(echoes) if echo)

    def piece(self, piece: Piece) -> bytes:
        """Nothing while a piece holds no text that is certain, no log-probabilities and no end."""
        self.answers.add(piece)
        echoes, logprobs = b"", None
        if piece.prompt_logprobs is not None:
            choices = range(piece.choice, piece.choice + self._n)
            shown = [self._logprobs(choice, piece.prompt_logprobs) for choice in choices]
            echoes = b"".join(self.chunk(i, {"text": self._echoes[i]}, of) for i, of in zip(choices, shown))
        if piece.logprobs is not None:
            logprobs = self._logprobs(piece.choice, [piece.logprobs])
        if not piece.text and logprobs is None and piece.finish_reason is None:
            return echoes
        return echoes + self.chunk(piece.choice, {"text": piece.text}, logprobs, piece.finish_reason, piece.stop_reason)

    def _logprobs(self, choice: int, entries: list[list[Any]]) -> dict[str, Any]:
        """Of tokens that follow those of this choice that were shown before."""
        logprobs = completion_logprobs(entries, self._offsets[choice])
        self._offsets[choice] += sum(map(len, logprobs["tokens"]))
        return logprobs
