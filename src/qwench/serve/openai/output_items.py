"""The items of a response while they are written: thoughts, messages and function calls, each with its events.

Made by response_items.py, which knows their order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeAlias

from qwench.serve.service import new_id

Event: TypeAlias = "tuple[str, dict[str, Any]]"  # its type, less "response.", and its fields


class OutputItem(ABC):
    """index: its place in the response. pieces: of its text. place: what its events say of it."""

    def __init__(self, prefix: str, index: int) -> None:
        self.index, self.id = index, new_id(prefix)
        self.pieces: list[str] = []
        self.place: dict[str, Any] = {"item_id": self.id, "output_index": index}

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def begin(self) -> list[Event]:
        return [("output_item.added", {"output_index": self.index, "item": self.object("in_progress")})]

    def add(self, text: str) -> list[Event]:
        self.pieces.append(text)
        return [(f"{self.text_kind}.delta", {**self.place, "delta": text})]

    def end(self, status: str) -> list[Event]:
        return [("output_item.done", {"output_index": self.index, "item": self.object(status)})]

    @property
    @abstractmethod
    def text_kind(self) -> str:
        """What events call its text."""

    @abstractmethod
    def object(self, status: str) -> dict[str, Any]:
        """As the response has it, as far as it is written."""


class CallItem(OutputItem):
    text_kind = "function_call_arguments"

    def __init__(self, name: str, index: int) -> None:
        super().__init__("fc", index)
        self._name, self._call_id = name, new_id("call")

    def end(self, status: str) -> list[Event]:
        whole = {**self.place, "name": self._name, "arguments": self.text}
        return [(f"{self.text_kind}.done", whole), *super().end(status)]

    def object(self, status: str) -> dict[str, Any]:
        return {
            "id": self.id, "type": "function_call", "status": status, "arguments": self.text, "call_id": self._call_id,
            "name": self._name,
        }  # fmt: skip


class _ItemWithPart(OutputItem):
    """Its text is in a part of its content."""

    def __init__(self, prefix: str, index: int) -> None:
        super().__init__(prefix, index)
        self.place["content_index"] = 0

    def begin(self) -> list[Event]:
        [(kind, fields)] = super().begin()
        fields["item"]["content"] = []
        return [(kind, fields), ("content_part.added", {**self.place, "part": self.part()})]

    def end(self, status: str) -> list[Event]:
        part = self.part()
        done = {name: value for name, value in part.items() if name in ("text", "logprobs")}
        return [
            (f"{self.text_kind}.done", {**self.place, **done}),
            ("content_part.done", {**self.place, "part": part}),
            *super().end(status),
        ]

    @abstractmethod
    def part(self) -> dict[str, Any]:
        """The part of the content."""


class MessageItem(_ItemWithPart):
    text_kind = "output_text"

    def __init__(self, index: int) -> None:
        super().__init__("msg", index)
        self._logprobs: list[dict[str, Any]] = []

    def add_with_logprobs(self, text: str, logprobs: list[dict[str, Any]]) -> list[Event]:
        self._logprobs += logprobs
        [(kind, fields)] = self.add(text)
        return [(kind, {**fields, "logprobs": logprobs})]

    def part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self._logprobs}

    def object(self, status: str) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": [self.part()]}


class ReasoningItem(_ItemWithPart):
    text_kind = "reasoning_text"

    def __init__(self, index: int) -> None:
        super().__init__("rs", index)

    def part(self) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": self.text}

    def object(self, status: str) -> dict[str, Any]:
        return {"id": self.id, "type": "reasoning", "status": status, "summary": [], "content": [self.part()]}
