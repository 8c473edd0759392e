"""The content of a turn as Anthropic's API writes it: text, or blocks of text, thoughts, calls and their results.

Called by messages.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from qwench.serve.protocol.shared.conversation import MAX_PARTS
from qwench.serve.protocol.shared.tools import CallId, FunctionName
from qwench.serve.protocol.validation.body import Body, Flag
from qwench.serve.protocol.validation.reading import ignore

BETWEEN = "\n"  # blocks of text


class Block(Body):
    places = ("part", "call")
    path = "content[]."


class TextBlock(Block):
    type: Literal["text"]
    text: str


class ThinkingBlock(Block):
    """What a former answer thought. signature: of no consequence, nothing here is signed."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Block):
    """A thought that its own model alone can read."""

    type: Literal["redacted_thinking"]
    data: str = ""


class ToolUseBlock(Block):
    """A call of a former answer."""

    type: Literal["tool_use"]
    id: CallId
    name: FunctionName
    input: dict[str, Any]


class TextSource(Body):
    """Plain text; `data` of other media is nothing that could be read here."""

    path = "content[].source."
    type: Literal["text", "content"]
    media_type: str | None = None
    data: str | None = None
    content: str | Annotated[list[TextBlock], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None

    @property
    def text(self) -> str:
        content = self.data if self.content is None else self.content
        return content if isinstance(content, str) else BETWEEN.join(block.text for block in content or ())


class DocumentBlock(Block):
    type: Literal["document"]
    source: TextSource
    title: str | None = None
    context: str | None = None

    @property
    def text(self) -> str:
        return BETWEEN.join(part for part in (self.title, self.context, self.source.text) if part)


class SearchResultBlock(Block):
    type: Literal["search_result"]
    source: str
    title: str
    content: Annotated[list[TextBlock], Field(max_length=MAX_PARTS, fail_fast=True)]

    @property
    def text(self) -> str:
        return BETWEEN.join((self.title, self.source, *(block.text for block in self.content)))


def _kind(block: Any) -> str:
    kind = block.get("type") if isinstance(block, Mapping) else getattr(block, "type", None)
    return kind if isinstance(kind, str) else ""


_READ = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result", "document", "search_result")


def _readable(content: Any) -> Any:
    """A list of blocks, without those of tools that Anthropic's own servers run, which no other model has seen."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    blocks = [content] if isinstance(content, dict) else content
    if not isinstance(blocks, list) or len(blocks) > MAX_PARTS:
        return blocks
    kept = []
    for block in blocks:
        kind = _kind(block)
        if kind == "image":
            raise PydanticCustomError("image", "images can't be read; this model reads text alone")
        is_others = kind not in _READ and kind.endswith(("_tool_result", "_tool_use", "_upload", "tool_reference"))
        if is_others:
            ignore(f"content[].{kind}")
        else:
            kept.append({"type": "text", "text": block} if isinstance(block, str) else block)
    return kept


def _discriminated(message: str) -> Discriminator:
    return Discriminator(_kind, custom_error_type="kind", custom_error_message=message)


Text: TypeAlias = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[DocumentBlock, Tag("document")]
    | Annotated[SearchResultBlock, Tag("search_result")],
    _discriminated("its type must be text, document or search_result"),
]  # fmt: skip
Texts: TypeAlias = Annotated[
    list[Text], Field(max_length=MAX_PARTS, fail_fast=True),
    BeforeValidator(_readable, json_schema_input_type=str | list[Text]),
]  # fmt: skip


def joined_text(blocks: Texts | None) -> str:
    return BETWEEN.join(block.text for block in blocks or ())


class ToolResultBlock(Block):
    """The result of a call. is_error: the content says what went wrong."""

    type: Literal["tool_result"]
    tool_use_id: CallId
    content: Texts | None = None
    is_error: Flag | None = None

    @property
    def text(self) -> str:
        return joined_text(self.content) or ("the call failed" if self.is_error else "")


AnyBlock: TypeAlias = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[RedactedThinkingBlock, Tag("redacted_thinking")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")]
    | Annotated[DocumentBlock, Tag("document")]
    | Annotated[SearchResultBlock, Tag("search_result")],
    _discriminated(f"its type must be one of {', '.join(_READ)}"),
]  # fmt: skip
Blocks: TypeAlias = Annotated[
    list[AnyBlock], Field(max_length=MAX_PARTS, fail_fast=True),
    BeforeValidator(_readable, json_schema_input_type=str | list[AnyBlock]),
]  # fmt: skip
