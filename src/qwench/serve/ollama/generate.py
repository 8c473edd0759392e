"""/api/generate: a prompt, through the chat template or as it is. Called by routes.py."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import Response

from qwench.serve.answers import Answers
from qwench.serve.failures import ApiError
from qwench.serve.ollama.chat import asked
from qwench.serve.ollama.reply import OllamaReply, Stopwatch, without_answer
from qwench.serve.processes.engine_client import Piece
from qwench.serve.protocol.ollama.requests import OllamaGenerateRequest
from qwench.serve.protocol.shared.conversation import TemplateMessage
from qwench.serve.protocol.validation.reading import ignore
from qwench.serve.service import ANY_LENGTH, ServedModel, Service
from qwench.serve.template import chat_params
from qwench.text.tool_calls import Part

NOTHING = {"response": ""}


async def answer_generate(model: ServedModel, body: OllamaGenerateRequest, request: Request) -> Response:
    """Raises ApiError or RequestError."""
    watch, service, info = Stopwatch(), model.service, model.service.engine_info()
    template, params = asked(service, body)
    if body.is_empty:
        return without_answer(body.model or model.name, body, NOTHING)
    is_plain = bool(body.raw or body.suffix)
    max_len = info.limits.max_seq_len if body.truncate is False else ANY_LENGTH
    prompt = _Prompt(service, body, template, max_len)

    async def make_prompts() -> list[list[int]]:
        return [await (prompt.plain() if is_plain else prompt.of_chat())]

    truncate = None if body.truncate is False else -1
    generation, [tokens] = await service.submit(
        make_prompts, 1, params if is_plain else chat_params(service, params, template), body.cache_salt,
        format_field=body.format_field, lora=model.lora,
        truncate=truncate if body.truncate_prompt_tokens is None else body.truncate_prompt_tokens,
    )  # fmt: skip
    watch.queued()
    context = None if is_plain else list(tokens)
    reply = _GenerateReply(body.model or model.name, body, Answers([len(tokens)], 1), watch, context)
    return await reply.response(generation, request)


class _Prompt:
    """The ways from a request to the tokens of its prompt. Each raises ApiError."""

    def __init__(self, service: Service, body: OllamaGenerateRequest, template: dict[str, Any], max_len: int) -> None:
        self._service, self._body, self._template, self._max_len = service, body, template, max_len

    async def plain(self) -> list[int]:
        """The text as it is, or what asks for what goes between it and the suffix."""
        prompt = self._body.prompt or ""
        if self._body.suffix:
            return await self._service.text.fill(prompt, self._body.suffix, self._max_len)
        [tokens] = await self._service.text.encode([prompt], self._max_len)
        return tokens

    async def of_chat(self) -> list[int]:
        """As the user's turn, the first one or behind a context."""
        turn: list[TemplateMessage] = [{"role": "user", "content": self._body.prompt or ""}]
        if self._body.context:
            return [*self._body.context, *await self._after_an_answer(turn)]
        system: list[TemplateMessage] = [{"role": "system", "content": self._body.system}] if self._body.system else []
        return await self._service.text.chat([*system, *turn], self._template, self._max_len)

    async def _after_an_answer(self, turn: list[TemplateMessage]) -> list[int]:
        """What the template puts behind the text of an answer, for a further turn of the user's."""
        if self._body.system:
            ignore("system")  # it stands at the beginning of the context
        told: list[TemplateMessage] = [
            {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}
        ]  # fmt: skip
        ending = {**self._template, "continue_final_message": True}
        before = await self._service.text.chat(told, ending, self._max_len)
        whole = await self._service.text.chat([*told, *turn], self._template, self._max_len)
        if whole[: len(before)] != before:
            raise ApiError.bad_request(
                "this model's chat template doesn't let a context be gone on with; send the conversation to /api/chat",
                param="context",
            )
        return whole[len(before) :]


class _GenerateReply(OllamaReply):
    """context: the prompt's tokens, if those of the answer are to follow them in the reply."""

    def __init__(
        self, model: str, body: OllamaGenerateRequest, answers: Answers, watch: Stopwatch, context: list[int] | None
    ) -> None:
        super().__init__(model, body, answers, watch)
        self._context = context

    def add(self, piece: Piece) -> list[Part]:
        if self._context is not None:
            is_end = piece.finish_reason == "stop" and not isinstance(piece.stop_reason, str)
            self._context += piece.token_ids[:-1] if is_end else piece.token_ids
        return super().add(piece)

    def content(self, text: str, thought: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        return {"response": text, **({"thinking": thought} if thought else {})}

    def end(self) -> dict[str, Any]:
        return super().end() | ({} if self._context is None else {"context": self._context})
