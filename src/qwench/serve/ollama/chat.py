"""/api/chat: a conversation to go on with. Called by routes.py."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import Response

from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.serve.chats import Conversation, begin_chat
from qwench.serve.ollama.reply import OllamaReply, Stopwatch, without_answer
from qwench.serve.protocol.ollama.requests import OllamaAnswerRequest, OllamaChatRequest
from qwench.serve.protocol.openai.chat import to_template
from qwench.serve.protocol.shared.tools import Choice, functions_of
from qwench.serve.service import ServedModel, Service
from qwench.serve.template import switched_thinking, template_variables
from qwench.serve.tool_use import ToolUse

NOTHING = {"message": {"role": "assistant", "content": ""}}


async def answer_chat(model: ServedModel, body: OllamaChatRequest, request: Request) -> Response:
    """Raises ApiError or RequestError."""
    watch, (template, params) = Stopwatch(), asked(model.service, body)
    if not body.messages:
        return without_answer(body.model or model.name, body, NOTHING)
    goes_on = {"continue_final_message": True} if body.messages[-1].prefix else {}
    conversation = Conversation(
        to_template(body.messages), template | goes_on, body.cache_salt, body.truncate_prompt_tokens,
        room=None if body.truncate is False else body.num_predict or 1,
    )  # fmt: skip
    tools = ToolUse.of(functions_of(body.tools), Choice("auto"), None)
    generation, answers = await begin_chat(model, conversation, tools, params, body.format_field, whole_calls=True)
    watch.queued()
    return await _ChatReply(body.model or model.name, body, answers, watch).response(generation, request)


def asked(service: Service, body: OllamaAnswerRequest) -> tuple[dict[str, Any], SamplingParams]:
    """Variables of the template, and how to sample. Raises ApiError or RequestError."""
    info = service.engine_info()
    template = template_variables(service, body.chat_template_kwargs, body.effort, None)
    switch = switched_thinking(service, body.is_thinking, "think")
    params = body.sampling_params(info.defaults, max_tokens=body.num_predict, logprobs=body.num_logprobs)
    return template | switch, params


class _ChatReply(OllamaReply):
    def content(self, text: str, thought: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        more = ({"thinking": thought} if thought else {}) | ({"tool_calls": calls} if calls else {})
        return {"message": {"role": "assistant", "content": text, **more}}
