"""The blocks of a message in their order, as the parts of an answer come, and the events that tell of them.

Called by messages.py, which has the message.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, TypeAlias

import pydantic_core

from qwench.serve.service import new_id
from qwench.text.call_reader import CallEnd, CallStart
from qwench.text.thoughts import ThoughtText
from qwench.text.tool_calls import Part

Event: TypeAlias = "dict[str, Any]"


class _Block(ABC):
    """A block while it is written. pieces: of its text."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def add(self, text: str) -> list[Event]:
        """The deltas that add it."""
        self.pieces.append(text)
        return [self.delta(text)]

    def last(self) -> list[Event]:
        """The deltas that the end adds."""
        return []

    @abstractmethod
    def delta(self, text: str) -> Event: ...

    @abstractmethod
    def beginning(self) -> dict[str, Any]:
        """As it starts."""

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """As the message has it."""


class _TextBlock(_Block):
    def delta(self, text: str) -> Event:
        return {"type": "text_delta", "text": text}

    def beginning(self) -> dict[str, Any]:
        return {"type": "text", "text": ""}

    def whole(self) -> dict[str, Any]:
        return {"type": "text", "text": self.text}


class _ThinkingBlock(_Block):
    """is_shown: the thought itself, and not just that there was one."""

    def __init__(self, is_shown: bool) -> None:
        super().__init__()
        self._is_shown = is_shown

    def add(self, text: str) -> list[Event]:
        deltas = super().add(text)
        return deltas if self._is_shown else []

    def delta(self, text: str) -> Event:
        return {"type": "thinking_delta", "thinking": text}

    def last(self) -> list[Event]:
        return [{"type": "signature_delta", "signature": self._signature()}]

    def beginning(self) -> dict[str, Any]:
        return {"type": "thinking", "thinking": "", "signature": ""}

    def whole(self) -> dict[str, Any]:
        return {
            "type": "thinking", "thinking": self.text if self._is_shown else "", "signature": self._signature(),
        }  # fmt: skip

    def _signature(self) -> str:
        """Clients give it back unread, and want one. Nobody checks it here."""
        return b64encode(hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).digest()).decode()


class _ToolUseBlock(_Block):
    def __init__(self, name: str) -> None:
        super().__init__()
        self._head = {"type": "tool_use", "id": new_id("toolu", "_"), "name": name}

    def delta(self, text: str) -> Event:
        return {"type": "input_json_delta", "partial_json": text}

    def beginning(self) -> dict[str, Any]:
        return {**self._head, "input": {}}

    def whole(self) -> dict[str, Any]:
        return {**self._head, "input": arguments_of(self.text)}


def arguments_of(text: str) -> dict[str, Any]:
    """Of a call, which may have broken off: then what there is of them, as clients read a stream."""
    arguments = pydantic_core.from_json(text, allow_partial=True) if text else {}
    return arguments if isinstance(arguments, dict) else {}


class ContentBlocks:
    """content: blocks that are done, as the message has them. shows_thoughts: or only that there were some."""

    def __init__(self, *, shows_thoughts: bool = True) -> None:
        self.content: list[dict[str, Any]] = []
        self._block: _Block | None = None  # the one that is being written
        self._shows_thoughts = shows_thoughts

    def add(self, parts: Sequence[Part]) -> list[Event]:
        """Events that tell of parts that are certain now."""
        return [event for part in parts for event in self._part(part)]

    def end(self) -> list[Event]:
        """The last events."""
        block, self._block = self._block, None
        if block is None:
            return []
        index = len(self.content)
        self.content.append(block.whole())
        return [*map(self._delta_of(index), block.last()), {"type": "content_block_stop", "index": index}]

    def _part(self, part: Part) -> list[Event]:
        if isinstance(part, CallEnd):
            return self.end()
        if isinstance(part, CallStart):
            return self._begin(_ToolUseBlock(part.name))
        begun: list[Event] = []
        if isinstance(part, str) and not isinstance(self._block, _TextBlock):
            begun = self._begin(_TextBlock())
        if isinstance(part, ThoughtText) and not isinstance(self._block, _ThinkingBlock):
            begun = self._begin(_ThinkingBlock(self._shows_thoughts))
        assert self._block is not None
        deltas = self._block.add(part if isinstance(part, str) else part.text)
        return [*begun, *map(self._delta_of(len(self.content)), deltas)]

    def _begin(self, block: _Block) -> list[Event]:
        end = self.end()
        self._block = block
        start = {"type": "content_block_start", "index": len(self.content), "content_block": block.beginning()}
        return [*end, start]

    @staticmethod
    def _delta_of(index: int) -> Any:
        return lambda delta: {"type": "content_block_delta", "index": index, "delta": delta}
