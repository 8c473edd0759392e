"""/tokenize and /detokenize. Called by routes.py."""

from __future__ import annotations

from typing import Any

from qwench.serve.protocol.openai.chat import to_template
from qwench.serve.protocol.openai.tokens import DetokenizeRequest, TokenizeRequest
from qwench.serve.protocol.shared.tools import functions_of
from qwench.serve.service import ANY_LENGTH, ServedModel
from qwench.serve.template import template_variables
from qwench.serve.tool_use import shown_tools


async def tokenize(model: ServedModel, body: TokenizeRequest) -> dict[str, Any]:
    """The tokens that a prompt or a conversation would be."""
    service = model.service
    max_len = service.engine_info().limits.max_seq_len
    if body.messages is not None:
        template = template_variables(service, body.chat_template_kwargs, None, None)
        template |= {
            "continue_final_message": bool(body.continue_final_message),
            **shown_tools(functions_of(body.tools)),
        }
        ids = await service.text.chat(to_template(body.messages), template, ANY_LENGTH)
    else:
        [ids] = await service.text.encode(
            [body.prompt or ""], ANY_LENGTH, add_special_tokens=body.add_special_tokens is not False
        )
    result: dict[str, Any] = {"count": len(ids), "max_model_len": max_len, "tokens": ids}
    if body.return_token_strs:
        result["token_strs"] = [piece.decode("utf-8", "replace") for piece in await service.text.pieces(ids)]
    return result


async def detokenize(model: ServedModel, body: DetokenizeRequest) -> dict[str, Any]:
    """Their text, special tokens written out."""
    return {"prompt": await model.service.text.decode(body.tokens)}
