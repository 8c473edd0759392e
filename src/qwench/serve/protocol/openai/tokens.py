"""The bodies of /tokenize and /detokenize, as vLLM defines them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from qwench.serve.protocol.openai.chat import Messages
from qwench.serve.protocol.shared.template import TemplateVariables
from qwench.serve.protocol.shared.tools import ChatTools
from qwench.serve.protocol.validation.body import Flag, ModelBody, TokenId


class TokenizeRequest(ModelBody):
    """A text, or a conversation that goes through the chat template. return_token_strs: the tokens as text, too."""

    places = ("request", "conversation", "tokens")
    prompt: str | None = None
    messages: Messages | None = None
    tools: ChatTools | None = None
    continue_final_message: Flag | None = None
    add_special_tokens: Flag | None = None
    return_token_strs: Flag | None = None
    chat_template_kwargs: TemplateVariables | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        if self.tools and self.messages is None:
            raise ValueError("tools go with messages")
        return self


class DetokenizeRequest(ModelBody):
    """Token ids to read."""

    places = ("request",)
    tokens: Annotated[list[TokenId], Field(max_length=1 << 20, fail_fast=True)]
