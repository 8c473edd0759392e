"""From a conversation to the answers that are being made: what the chat route of every API does once it has read its
body, and before it shows anything.

Knows no API's JSON. Called by the routes that take conversations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.serve.answers import Answers
from qwench.serve.processes.engine_client import Generation, Piece
from qwench.serve.protocol.shared.conversation import TemplateMessage
from qwench.serve.service import ANY_LENGTH, ServedModel
from qwench.serve.template import chat_params
from qwench.serve.tool_use import ToolUse
from qwench.serve.truncation import latest_turns


@dataclass(frozen=True)
class Conversation:
    """messages, template: for the chat template, its variables without the tools. salt, truncate: as Service.submit has
    them. room: for the answer, in tokens, for which the oldest turns give way; None: what is too long is refused."""

    messages: list[TemplateMessage]
    template: dict[str, Any]
    salt: str | None = None
    truncate: int | None = None
    room: int | None = None


async def begin_chat(
    model: ServedModel, conversation: Conversation, tools: ToolUse, params: SamplingParams, format_field: str | None,
    *, view: Callable[[Piece], Piece] = Piece.without_end, whole_calls: bool = False,
) -> tuple[Generation, Answers]:  # fmt: skip
    """params: with the grammar of `format_field`, if any; without those of tools. whole_calls: the API can't show a
    call before it is complete. Raises ApiError or RequestError."""
    service, info = model.service, model.service.engine_info()
    params = chat_params(service, params, conversation.template)
    params, format_field = tools.adapt(params, format_field, info.tool_tags)
    template = conversation.template | tools.template_variables()
    max_len, truncate = info.limits.max_seq_len, conversation.truncate

    async def make_prompts() -> list[list[int]]:
        if conversation.room is not None:
            room = max_len - min(conversation.room, max_len // 2)
            return [await latest_turns(service, conversation.messages, template, room)]
        longest = max_len if truncate is None else ANY_LENGTH
        return [await service.text.chat(conversation.messages, template, longest)]

    generation, prompts = await service.submit(
        make_prompts, 1, params, conversation.salt, view=view, format_field=format_field, lora=model.lora,
        truncate=truncate,
    )  # fmt: skip
    make_parser = tools.parser_maker(service.settings, params, format_field, is_whole=whole_calls)
    return generation, Answers([len(prompt) for prompt in prompts], params.n, make_parser)
