"""/v1/messages: one answer to a conversation, as Anthropic shows it; and how many tokens the conversation has.

Called by routes.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from qwench.serve.answers import THINKING, Answers
from qwench.serve.anthropic.content_blocks import ContentBlocks
from qwench.serve.chats import Conversation, begin_chat
from qwench.serve.failures import ApiError, ErrorForm, form_of
from qwench.serve.http.streaming import EventStream, abort_when_gone, event, pieces_or_silence
from qwench.serve.processes.engine_client import Generation, Piece
from qwench.serve.protocol.anthropic.messages import MessagesRequest
from qwench.serve.protocol.shared.tools import functions_of
from qwench.serve.service import ANY_LENGTH, ServedModel, Service, new_id
from qwench.serve.template import switched_thinking, template_variables
from qwench.serve.tool_use import ToolUse

PING_S = 10.0  # how long a stream may be silent: proxies and clients give up on one that says nothing
_STOP_REASONS = {"tool_calls": "tool_use", "stop": "end_turn", "length": "max_tokens"}


async def answer_message(model: ServedModel, body: MessagesRequest, request: Request) -> Response:
    """Raises ApiError or RequestError."""
    service, info = model.service, model.service.engine_info()
    conversation, tools, budget = _conversation(service, body)
    params = body.sampling_params(info.defaults, max_tokens=body.max_tokens or None, logprobs=None)
    params = dataclasses.replace(params, max_thinking_tokens=budget)
    only_reads = body.max_tokens == 0
    generation, answers = await begin_chat(
        model, conversation, tools, dataclasses.replace(params, max_tokens=1) if only_reads else params,
        body.format_field, view=Piece.without_answer if only_reads else Piece.without_end,
    )  # fmt: skip
    reply = MessageReply(model.name, body, answers)
    if body.stream:
        return EventStream(reply.events(generation, form_of(request.scope)), generation)
    async with abort_when_gone(request.receive, generation):
        while not generation.is_finished:
            reply.add(await generation.take())
    reply.end()
    return JSONResponse(reply.message())


async def count_tokens(service: Service, body: MessagesRequest) -> dict[str, int]:
    """Of the prompt that the conversation would be."""
    conversation, tools, _ = _conversation(service, body)
    template = conversation.template | tools.template_variables()
    return {"input_tokens": len(await service.text.chat(conversation.messages, template, ANY_LENGTH))}


def _conversation(service: Service, body: MessagesRequest) -> tuple[Conversation, ToolUse, int | None]:
    """What is asked, with which tools, and how long a thought may be."""
    thinking, effort = body.thinking, body.output_config.effort if body.output_config else None
    template = template_variables(service, body.chat_template_kwargs, effort, None)
    switch = switched_thinking(service, thinking.is_on if thinking else None, "thinking")
    template |= switch | ({"continue_final_message": True} if body.goes_on else {})
    tools = ToolUse.of(functions_of(body.tools), body.choice, body.is_parallel)
    budget = thinking.budget_tokens if thinking else None
    budget = body.max_thinking_tokens if budget is None else budget
    return Conversation(body.to_messages(), template, body.cache_salt, body.truncate_prompt_tokens), tools, budget


class MessageReply:
    """The message and the events that build it up. Take all pieces of the generation, then `end` it."""

    def __init__(self, model: str, body: MessagesRequest, answers: Answers) -> None:
        self._answers, self._max_tokens = answers, body.max_tokens
        is_omitted = body.thinking is not None and body.thinking.display == "omitted"
        self._blocks = ContentBlocks(shows_thoughts=not is_omitted)
        self._head = {"id": new_id("msg", "_"), "type": "message", "role": "assistant", "model": model}

    def add(self, pieces: list[Piece]) -> list[dict[str, Any]]:
        """Events that tell of pieces."""
        return [event for piece in pieces for event in self._blocks.add(self._answers.add(piece))]

    def end(self) -> list[dict[str, Any]]:
        """The last events."""
        delta = {"stop_reason": self._stop_reason(), "stop_sequence": self._stop_sequence()}
        return [
            *self._blocks.end(),
            {"type": "message_delta", "delta": delta, "usage": self._usage()},
            {"type": "message_stop"},
        ]

    def message(self) -> dict[str, Any]:
        """As far as it is written: whole once it is ended."""
        return {
            **self._head, "content": self._blocks.content, "stop_reason": self._stop_reason(),
            "stop_sequence": self._stop_sequence(), "usage": self._usage(),
        }  # fmt: skip

    async def events(self, generation: Generation, errors: ErrorForm) -> AsyncIterator[bytes]:
        yield _encoded([{"type": "message_start", "message": self.message()}, {"type": "ping"}])
        try:
            async for pieces in pieces_or_silence(generation, PING_S):
                yield _encoded(self.add(pieces) if pieces else [{"type": "ping"}])
        except ApiError as error:
            yield event(errors.show(error), "error")
            return
        yield _encoded(self.end())

    def _stop_reason(self) -> str | None:
        answer = self._answers.choices[0]
        if answer.finish_reason == "length" and self._max_tokens and answer.num_tokens < self._max_tokens:
            return "model_context_window_exceeded"
        if answer.finish_reason == "stop" and self._stop_sequence() is not None:
            return "stop_sequence"
        return _STOP_REASONS.get(answer.finish_reason or "")

    def _stop_sequence(self) -> str | None:
        answer = self._answers.choices[0]
        is_text = isinstance(answer.stop_reason, str) and answer.finish_reason == "stop"
        return str(answer.stop_reason) if is_text and answer.stop_reason != THINKING else None

    def _usage(self) -> dict[str, Any]:
        """As far as it is known: what was found in the cache only at the end."""
        answers = self._answers
        return {
            "input_tokens": answers.num_prompt - answers.num_cached, "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": answers.num_cached, "output_tokens": answers.num_generated,
            "output_tokens_details": {"thinking_tokens": answers.num_reasoning},
        }  # fmt: skip


def _encoded(events: list[dict[str, Any]]) -> bytes:
    return b"".join(event(each, each["type"]) for each in events)
