"""Messages -> prompt text, through the checkpoint's own chat template, rendered as transformers renders it.

Templates aren't trusted: they run in Jinja's immutable sandbox and see only their variables. Called by `LLM.chat`, the
command line and the server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from qwench.errors import CheckpointError, RequestError
from qwench.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from jinja2 import Environment, Template

Message = Mapping[str, Any]

MARK = "<continue-here> "  # its blank shows whether the template keeps the one that a turn ends with


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    chat_template: str | None = None,
    **variables: Any,
) -> str:
    """The prompt for a conversation of {"role": ..., "content": ...} messages.

    continue_final_message: the prompt ends within the last message, for the answer to go on with it.
    chat_template: another template than the model's. variables: whatever else the template understands. Raises
    RequestError when the messages aren't what the template expects or it leaves tools out, CheckpointError when there's
    no usable template.
    """
    check_messages(messages)
    if continue_final_message:
        messages, add_generation_prompt = [*messages[:-1], _marked(messages[-1])], False

    def render(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> str:
        source = chat_template or choose_template(tokenizer.chat_template, bool(tools))
        return _render(
            source, messages=messages, tools=tools, documents=None, add_generation_prompt=add_generation_prompt,
            **{**tokenizer.special_tokens, **variables},
        )  # fmt: skip

    text = render(messages, tools)
    has_calls = any(message.get("tool_calls") for message in messages)
    if (tools or has_calls) and text == render([_without_calls(message) for message in messages], None):
        what = "tools" if tools else "the tool calls of earlier answers"
        raise RequestError(
            f"the model's chat template has no place for {what}: the model would never learn of them. Ask "
            "without them, or use a model that was trained to call tools, such as Qwen2.5-Instruct"
        )
    return _until_mark(text) if continue_final_message else text


def template_variables(tokenizer: Tokenizer) -> frozenset[str]:
    """The variables that the model's chat template reads; none where there's no usable one."""
    from jinja2 import TemplateSyntaxError, meta

    template = tokenizer.chat_template or ""
    sources = [template] if isinstance(template, str) else template.values()
    try:
        return frozenset().union(*(meta.find_undeclared_variables(_environment().parse(source)) for source in sources))
    except TemplateSyntaxError:
        return frozenset()


def _marked(message: Message) -> Message:
    if not isinstance(message.get("content"), str):
        raise RequestError("continue_final_message needs a last message whose content is text")
    return {**message, "content": message["content"] + MARK}


def _until_mark(text: str) -> str:
    """As transformers cuts it: where the template trims messages, without the white space before the mark."""
    end = text.rfind(MARK.strip())
    if end < 0:
        raise RequestError("the chat template doesn't show the end of the last message, so no answer can go on with it")
    return text[:end] if text.startswith(MARK, end) else text[:end].rstrip()


def _without_calls(message: Message) -> Message:
    return {name: value for name, value in message.items() if name != "tool_calls"}


def _render(source: str, **variables: Any) -> str:
    from jinja2 import TemplateError

    try:
        return _compiled(source).render(**variables)
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        raise RequestError(f"the chat template refuses these messages: {error}") from None


def check_messages(messages: Sequence[Message]) -> None:
    """Raises RequestError unless it's a list of messages with a role each."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise RequestError('a conversation is a list of messages like {"role": "user", "content": "Hello"}')
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(f"message {i} is {message!r}; it must be an object with a role and content")


def choose_template(template: str | Mapping[str, str] | None, has_tools: bool) -> str:
    """The source to use: of several, "tool_use" with tools if there is one, else "default"."""
    if isinstance(template, Mapping):
        template = template.get("tool_use" if has_tools and "tool_use" in template else "default")
    if not template:
        raise CheckpointError("the model has no chat template; give one, or use a plain prompt")
    return template


@lru_cache(maxsize=16)
def _compiled(source: str) -> Template:
    from jinja2 import TemplateSyntaxError

    try:
        return _environment().from_string(source)
    except TemplateSyntaxError as error:
        raise CheckpointError(f"the chat template has an error in line {error.lineno}: {error.message}") from None


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}: marks the assistant's tokens for training; here just its body."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
               sort_keys: bool = False) -> str:  # fmt: skip
        # Jinja's own filter escapes HTML.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment
