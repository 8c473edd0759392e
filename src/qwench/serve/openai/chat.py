"""/v1/chat/completions: a conversation to tokens, and pieces of answers to OpenAI's chat objects and chunks.

Called by routes.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.serve.answers import Answers
from qwench.serve.chats import Conversation, begin_chat
from qwench.serve.failures import ApiError
from qwench.serve.openai.logprobs import chat_logprobs, check_prompt_logprobs, prompt_logprobs
from qwench.serve.openai.reply import Reply
from qwench.serve.processes.engine_client import EngineInfo, Piece
from qwench.serve.protocol.openai.chat import ChatRequest, to_template
from qwench.serve.protocol.shared.tools import choice_of, functions_of
from qwench.serve.service import ServedModel, new_id
from qwench.serve.template import template_variables
from qwench.serve.tool_use import ToolUse
from qwench.text.call_reader import CallArguments, CallStart
from qwench.text.thoughts import ThoughtText
from qwench.text.tool_calls import Part


async def answer_chat(model: ServedModel, body: ChatRequest, request: Request) -> Response:
    """Raises ApiError or RequestError."""
    service, info = model.service, model.service.engine_info()
    tools = ToolUse.of(functions_of(body.tools), choice_of(body.tool_choice), body.parallel_tool_calls)
    template = template_variables(service, body.chat_template_kwargs, body.reasoning_effort, body.reasoning)
    template |= _continuation(body.goes_on, template)
    conversation = Conversation(to_template(body.messages), template, body.cache_salt, body.truncate_prompt_tokens)
    params = _params(body, info)
    generation, answers = await begin_chat(model, conversation, tools, params, body.format_field)
    return await ChatReply(model.name, body, answers).response(generation, request, is_stream=bool(body.stream))


def _params(body: ChatRequest, info: EngineInfo) -> SamplingParams:
    if body.top_logprobs and not body.logprobs:
        raise ApiError.bad_request("top_logprobs needs logprobs to be true", param="top_logprobs")
    check_prompt_logprobs(body.prompt_logprobs, body.stream)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    max_tokens = body.max_completion_tokens or body.max_tokens
    params = body.sampling_params(info.defaults, max_tokens=max_tokens, logprobs=logprobs)
    return dataclasses.replace(params, prompt_logprobs=body.prompt_logprobs)


def _continuation(goes_on: bool, template: dict[str, Any]) -> dict[str, Any]:
    """Raises ApiError where a new turn is wanted as well."""
    if goes_on and template.get("add_generation_prompt"):
        raise ApiError.bad_request(
            "continue_final_message and add_generation_prompt contradict each other", param="continue_final_message"
        )
    return {"continue_final_message": True} if goes_on else {}


class ChatReply(Reply):
    def __init__(self, model: str, body: ChatRequest, answers: Answers) -> None:
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        super().__init__("chatcmpl", kind, model, answers, body.stream_options)
        self._has_logprobs, self._has_prompt_logprobs = bool(body.logprobs), body.prompt_logprobs is not None
        self._stop_token_ids = body.stop_token_ids or []

    def whole(self) -> dict[str, Any]:
        shown = prompt_logprobs(self.answers.prompt_logprobs[0]) if self._has_prompt_logprobs else None
        return super().whole() | ({"prompt_logprobs": shown} if shown is not None else {})

    def choice(self, index: int) -> dict[str, Any]:
        answer = self.answers.choices[index]
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if reasoning := answer.reasoning:
            message |= {"content": answer.text or None, **_reasoning(reasoning)}
        if calls := answer.calls:
            message["content"] = answer.text or None
            message["tool_calls"] = [_call_object(call.name, call.arguments) for call in calls]
        return {
            "index": index,
            "message": message,
            "logprobs": chat_logprobs(answer.logprobs) if self._has_logprobs else None,
            "finish_reason": answer.finish_reason,
            "stop_reason": self._stop_reason(answer.stop_reason),
        }

    def beginning(self) -> bytes:
        role = {"delta": {"role": "assistant", "content": ""}}
        return b"".join(self.chunk(index, role) for index in range(len(self.answers.choices)))

    def piece(self, piece: Piece) -> bytes:
        """Nothing while nothing that a piece holds is certain, unless it has log-probabilities to show."""
        answer = self.answers.choices[piece.choice]
        num_calls = answer.num_calls
        deltas: list[dict[str, Any]] = []
        for part in self.answers.add(piece):
            num_calls += isinstance(part, CallStart)
            deltas += _deltas(part, num_calls - 1)
        logprobs = chat_logprobs([piece.logprobs]) if piece.logprobs is not None else None
        if logprobs is not None and not (deltas and "content" in deltas[0]):
            deltas.insert(0, {"content": ""})
        chunks = [
            self.chunk(piece.choice, {"delta": delta}, logprobs if i == 0 else None) for i, delta in enumerate(deltas)
        ]
        if piece.finish_reason is not None:
            end = self._stop_reason(answer.stop_reason)
            chunks.append(self.chunk(piece.choice, {"delta": {}}, None, answer.finish_reason, end))
        return b"".join(chunks)

    def _stop_reason(self, reason: int | str | None) -> int | str | None:
        """The stop string or the token that the client asked for; not the model's own ends of a turn."""
        return reason if isinstance(reason, str) or reason in self._stop_token_ids else None


def _call_object(name: str, arguments: str) -> dict[str, Any]:
    return {"id": new_id("call"), "type": "function", "function": {"name": name, "arguments": arguments}}


def _reasoning(text: str) -> dict[str, Any]:
    """Under the name that DeepSeek gave it, and under vLLM's."""
    return {"reasoning_content": text, "reasoning": text}


def _deltas(part: Part, index: int) -> list[dict[str, Any]]:
    """What a part adds to the message; index: of the call that it belongs to."""
    if isinstance(part, str):
        return [{"content": part}]
    if isinstance(part, ThoughtText):
        return [_reasoning(part.text)]
    if isinstance(part, CallStart):
        return [{"tool_calls": [{"index": index, **_call_object(part.name, "")}]}]
    if isinstance(part, CallArguments):
        return [{"tool_calls": [{"index": index, "function": {"arguments": part.text}}]}]
    return []
