"""/v1/responses: one answer to a text or a conversation, as OpenAI's newer interface shows it.

Called by app.py.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from qwench.serve.answers import Answers, chat_logprobs
from qwench.serve.engine_client import Generation, Piece
from qwench.serve.failures import ApiError
from qwench.serve.protocol.responses import ResponsesRequest
from qwench.serve.service import Service, new_id
from qwench.serve.streaming import EventStream, abort_when_gone, event


async def answer_response(service: Service, body: ResponsesRequest, request: Request) -> Response:
    """Raises ApiError or RequestError."""
    service.check_model(body.model)
    info = service.engine_info()
    logprobs = (body.top_logprobs or 0) if body.wants_logprobs else None
    params = body.sampling_params(info.defaults, max_tokens=body.max_output_tokens, logprobs=logprobs)
    params = params if params.ignore_eos else info.with_chat_ends(params)

    async def make_prompts() -> list[list[int]]:
        return [await service.text.chat(body.to_messages(), {}, info.limits.max_seq_len)]

    generation, prompts = await service.submit(make_prompts, 1, params, body.cache_salt)
    reply = _ResponseReply(service.name, body, Answers([len(prompts[0])], 1))
    if body.stream:
        return EventStream(reply.events(generation), generation)
    async with abort_when_gone(request.receive, generation):
        await reply.answers.gather(generation)
    return JSONResponse(reply.response(reply.final_status))


class _ResponseReply:
    """The response object and the events that build it up."""

    def __init__(self, model: str, body: ResponsesRequest, answers: Answers) -> None:
        self._model, self._body, self.answers = model, body, answers
        self._id, self._item_id, self._created = new_id("resp"), new_id("msg"), int(time.time())
        self._sequence_number = 0

    @property
    def final_status(self) -> str:
        return "incomplete" if self.answers.choices[0].finish_reason == "length" else "completed"

    def response(self, status: str, error: dict[str, Any] | None = None) -> dict[str, Any]:
        """The object as it is at `status`; its output and usage once that is a final one."""
        body, is_final = self._body, status in ("completed", "incomplete")
        return {
            "id": self._id, "object": "response", "created_at": self._created, "status": status, "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions, "max_output_tokens": body.max_output_tokens, "model": self._model,
            "output": [self._item(status)] if is_final else [], "parallel_tool_calls": True,
            "previous_response_id": None, "reasoning": {"effort": None, "summary": None}, "store": False,
            "temperature": body.temperature, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [],
            "top_p": body.top_p, "top_logprobs": body.top_logprobs, "truncation": "disabled",
            "usage": self._usage() if is_final else None, "user": body.user, "metadata": body.metadata or {},
        }  # fmt: skip

    def _item(self, status: str) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self._part()]
        return {"id": self._item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _part(self) -> dict[str, Any]:
        answer = self.answers.choices[0]
        logprobs = chat_logprobs(answer.logprobs)["content"]
        return {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": logprobs}

    def _usage(self) -> dict[str, Any]:
        usage = self.answers.usage()
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }

    async def events(self, generation: Generation) -> AsyncIterator[bytes]:
        at = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        yield self._event("response.created", response=self.response("in_progress"))
        yield self._event("response.in_progress", response=self.response("in_progress"))
        yield self._event("response.output_item.added", output_index=0, item=self._item("in_progress"))
        empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield self._event("response.content_part.added", **at, part=empty)
        try:
            while not generation.is_finished:
                yield b"".join(self._delta(piece, at) for piece in await generation.take())
        except ApiError as error:
            failure = {"code": "server_error", "message": error.message}
            yield self._event("response.failed", response=self.response("failed", failure))
            return
        status, part = self.final_status, self._part()
        yield self._event("response.output_text.done", **at, text=part["text"], logprobs=part["logprobs"])
        yield self._event("response.content_part.done", **at, part=part)
        yield self._event("response.output_item.done", output_index=0, item=self._item(status))
        yield self._event(f"response.{status}", response=self.response(status))

    def _delta(self, piece: Piece, at: dict[str, Any]) -> bytes:
        self.answers.add(piece)
        logprobs = [] if piece.logprobs is None else chat_logprobs([piece.logprobs])["content"]
        if not piece.text and not logprobs:
            return b""
        return self._event("response.output_text.delta", **at, delta=piece.text, logprobs=logprobs)

    def _event(self, type: str, **fields: Any) -> bytes:
        number = self._sequence_number
        self._sequence_number += 1
        return event({"type": type, "sequence_number": number, **fields}, type)
