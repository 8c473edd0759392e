"""/v1/chat/completions: a conversation to tokens, and pieces of answers to OpenAI's chat objects and chunks.

Called by routes.py.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from qwench.runtime.sampling_params import SamplingParams
from qwench.serve.answers import Answers
from qwench.serve.failures import ApiError
from qwench.serve.http.streaming import EventStream, abort_when_gone
from qwench.serve.openai.logprobs import chat_logprobs
from qwench.serve.openai.reply import Reply
from qwench.serve.processes.engine_client import EngineInfo, Piece
from qwench.serve.protocol.chat import ChatRequest, to_template
from qwench.serve.protocol.tools import choice_of, functions_of
from qwench.serve.service import Service, new_id
from qwench.serve.tool_use import ToolUse
from qwench.text.call_reader import CallArguments, CallStart
from qwench.text.tool_calls import Part


async def answer_chat(service: Service, body: ChatRequest, request: Request) -> Response:
    """Raises ApiError or RequestError."""
    model = service.check_model(body.model)
    info = service.engine_info()
    tools = ToolUse.of(functions_of(body.tools), choice_of(body.tool_choice), body.parallel_tool_calls)
    params, format_field = tools.adapt(_params(body, info), body.format_field, info.tool_tags)
    template = _template_variables(body, service.settings.template_variables) | tools.template_variables()
    messages = to_template(body.messages)

    async def make_prompts() -> list[list[int]]:
        return [await service.text.chat(messages, template, info.limits.max_seq_len)]

    generation, prompts = await service.submit(
        make_prompts, 1, params, body.cache_salt, format_field=format_field, lora=model.lora
    )
    make_parser = tools.parser_maker(service.settings, params, format_field)
    answers = Answers([len(prompt) for prompt in prompts], params.n, make_parser)
    reply = ChatReply(model.name, body, answers)
    if body.stream:
        return EventStream(reply.events(generation), generation)
    async with abort_when_gone(request.receive, generation):
        await reply.answers.gather(generation)
    return JSONResponse(reply.whole())


def _params(body: ChatRequest, info: EngineInfo) -> SamplingParams:
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError.bad_request("top_logprobs needs logprobs to be true", param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise ApiError.bad_request("stream_options needs stream to be true", param="stream_options")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    max_tokens = body.max_completion_tokens or body.max_tokens
    params = body.sampling_params(info.defaults, max_tokens=max_tokens, logprobs=logprobs)
    return params if params.ignore_eos else info.with_chat_ends(params)


def _template_variables(body: ChatRequest, allowed: tuple[str, ...]) -> dict[str, Any]:
    """Raises ApiError for a variable that requests may not set."""
    given = body.chat_template_kwargs or {}
    for name in given:
        if name not in allowed:
            listed = ", ".join(allowed) or "none"
            raise ApiError.bad_request(
                f"chat_template_kwargs may not set {name!r}; allowed: {listed}", param="chat_template_kwargs"
            )
    return dict(given)


class ChatReply(Reply):
    def __init__(self, model: str, body: ChatRequest, answers: Answers) -> None:
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        super().__init__("chatcmpl", kind, model, answers, body.stream_options)
        self._has_logprobs = bool(body.logprobs)
        self._stop_token_ids = body.stop_token_ids or []

    def choice(self, index: int) -> dict[str, Any]:
        answer = self.answers.choices[index]
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
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
            end = self._stop_reason(piece.stop_reason)
            chunks.append(self.chunk(piece.choice, {"delta": {}}, None, answer.finish_reason, end))
        return b"".join(chunks)

    def _stop_reason(self, reason: int | str | None) -> int | str | None:
        """The stop string or the token that the client asked for; not the model's own ends of a turn."""
        return reason if isinstance(reason, str) or reason in self._stop_token_ids else None


def _call_object(name: str, arguments: str) -> dict[str, Any]:
    return {"id": new_id("call"), "type": "function", "function": {"name": name, "arguments": arguments}}


def _deltas(part: Part, index: int) -> list[dict[str, Any]]:
    """What a part adds to the message; index: of the call that it belongs to."""
    if isinstance(part, str):
        return [{"content": part}]
    if isinstance(part, CallStart):
        return [{"tool_calls": [{"index": index, **_call_object(part.name, "")}]}]
    if isinstance(part, CallArguments):
        return [{"tool_calls": [{"index": index, "function": {"arguments": part.text}}]}]
    return []
