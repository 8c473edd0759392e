"""/v1/responses: one answer to a text or a conversation, as OpenAI's newer interface shows it.

Called by routes.py.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from qwench.serve.answers import Answers
from qwench.serve.chats import Conversation, begin_chat
from qwench.serve.failures import ApiError
from qwench.serve.http.streaming import EventStream, abort_when_gone, event
from qwench.serve.openai.response_items import ResponseItems
from qwench.serve.processes.engine_client import Generation
from qwench.serve.protocol.openai.responses import ResponsesRequest
from qwench.serve.protocol.shared.tools import choice_of, functions_of
from qwench.serve.service import ServedModel, new_id
from qwench.serve.template import template_variables
from qwench.serve.tool_use import ToolUse


async def answer_response(model: ServedModel, body: ResponsesRequest, request: Request) -> Response:
    """Raises ApiError or RequestError."""
    service, info = model.service, model.service.engine_info()
    tools = ToolUse.of(functions_of(body.tools), choice_of(body.tool_choice), body.parallel_tool_calls)
    logprobs = (body.top_logprobs or 0) if body.wants_logprobs else None
    params = body.sampling_params(info.defaults, max_tokens=body.max_output_tokens, logprobs=logprobs)
    template = template_variables(service, body.chat_template_kwargs, body.reasoning_effort, body.reasoning)
    conversation = Conversation(
        body.to_messages(), template, body.cache_salt, body.truncate_prompt_tokens,
        room=(body.max_output_tokens or 1) if body.truncation == "auto" else None,
    )  # fmt: skip
    generation, answers = await begin_chat(model, conversation, tools, params, body.format_field)
    reply = _ResponseReply(model.name, body, answers)
    if body.stream:
        return EventStream(reply.events(generation), generation)
    async with abort_when_gone(request.receive, generation):
        await reply.gather(generation)
    return JSONResponse(reply.response(reply.final_status))


class _ResponseReply:
    """The response object and the events that build it up."""

    def __init__(self, model: str, body: ResponsesRequest, answers: Answers) -> None:
        self._model, self._body, self._answers = model, body, answers
        self._id, self._created = new_id("resp"), int(time.time())
        self._items = ResponseItems(self._event)
        self._sequence_number = 0

    @property
    def final_status(self) -> str:
        return "incomplete" if self._answers.choices[0].finish_reason == "length" else "completed"

    def response(self, status: str, error: dict[str, Any] | None = None) -> dict[str, Any]:
        """The object as it is at `status`; its output and usage once that is a final one."""
        body, is_final = self._body, status in ("completed", "incomplete")
        return {
            "id": self._id, "object": "response", "created_at": self._created, "status": status, "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions, "max_output_tokens": body.max_output_tokens, "model": self._model,
            "output": self._items.output if is_final else [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None, "reasoning": {"effort": body.effort, "summary": None}, "store": False,
            "temperature": body.temperature, "text": {"format": body.shown_format()},
            "tool_choice": body.shown_tool_choice(), "tools": body.shown_tools(),
            "top_p": body.top_p, "top_logprobs": body.top_logprobs, "truncation": body.truncation or "disabled",
            "usage": self._usage() if is_final else None, "user": body.user, "metadata": body.metadata or {},
        }  # fmt: skip

    def _usage(self) -> dict[str, Any]:
        answers = self._answers
        return {
            "input_tokens": answers.num_prompt,
            "input_tokens_details": {"cached_tokens": answers.num_cached, "cache_write_tokens": 0},
            "output_tokens": answers.num_generated,
            "output_tokens_details": {"reasoning_tokens": answers.num_reasoning},
            "total_tokens": answers.num_prompt + answers.num_generated,
        }

    async def gather(self, generation: Generation) -> None:
        """The whole response is what its events say. Raises ApiError when the engine fails."""
        async for _ in self._item_events(generation):
            pass

    async def events(self, generation: Generation) -> AsyncIterator[bytes]:
        yield self._event("response.created", response=self.response("in_progress"))
        yield self._event("response.in_progress", response=self.response("in_progress"))
        try:
            async for events in self._item_events(generation):
                yield events
        except ApiError as error:
            failure = {"code": "server_error", "message": error.message}
            yield self._event("response.failed", response=self.response("failed", failure))
            return
        yield self._event(f"response.{self.final_status}", response=self.response(self.final_status))

    async def _item_events(self, generation: Generation) -> AsyncIterator[bytes]:
        while not generation.is_finished:
            pieces = await generation.take()
            yield b"".join(self._items.add(self._answers.add(piece), piece.logprobs) for piece in pieces)
        yield self._items.end(self.final_status)

    def _event(self, type: str, **fields: Any) -> bytes:
        number = self._sequence_number
        self._sequence_number += 1
        return event({"type": type, "sequence_number": number, **fields}, type)
