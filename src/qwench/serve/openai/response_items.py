"""The items of a response in their order, as the parts of an answer come, and the events that tell of them.

Called by responses.py, which has the response object; what an item looks like is in output_items.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from qwench.serve.openai.logprobs import chat_logprobs
from qwench.serve.openai.output_items import CallItem, Event, MessageItem, OutputItem, ReasoningItem
from qwench.text.call_reader import CallEnd, CallStart
from qwench.text.thoughts import ThoughtText
from qwench.text.tool_calls import Part


class MakeEvent(Protocol):
    def __call__(self, type: str, **fields: Any) -> bytes: ...


class ResponseItems:
    """output: items that are done, as the response object has them."""

    def __init__(self, make_event: MakeEvent) -> None:
        self.output: list[dict[str, Any]] = []
        self._make_event = make_event
        self._item: OutputItem | None = None  # the one that is being written
        self._logprobs: list[list[Any]] = []  # of tokens whose text isn't certain yet

    def add(self, parts: Sequence[Part], logprobs: list[Any] | None) -> bytes:
        """Events that tell of the parts that a token made certain. logprobs: the token's, as in Piece.

        Tokens of a call show no log-probabilities: an item for a call has no room for them.
        """
        if logprobs is not None:
            self._logprobs.append(logprobs)
        return self._bytes(event for part in parts for event in self._part(part))

    def end(self, status: str) -> bytes:
        """The last events. An answer without anything is an empty message."""
        events: list[Event] = []
        if isinstance(self._item, MessageItem) or not (self._item or self.output):
            events += self._text("") if self._logprobs else self._message()[1]
        return self._bytes([*events, *self._end(status)])

    def _bytes(self, events: Iterable[Event]) -> bytes:
        return b"".join(self._make_event(f"response.{kind}", **fields) for kind, fields in events)

    def _part(self, part: Part) -> list[Event]:
        if isinstance(part, str):
            return self._text(part)
        if isinstance(part, CallStart):
            self._logprobs = []
            return self._begin(CallItem(part.name, self._next_index))
        if isinstance(part, CallEnd):
            return self._end("completed" if part.is_whole else "incomplete")
        begun = []
        if isinstance(part, ThoughtText) and not isinstance(self._item, ReasoningItem):
            begun = self._begin(ReasoningItem(self._next_index))
        assert self._item is not None
        return begun + self._item.add(part.text)

    def _text(self, text: str) -> list[Event]:
        message, begun = self._message()
        logprobs, self._logprobs = chat_logprobs(self._logprobs)["content"], []
        return begun + message.add_with_logprobs(text, logprobs)

    def _message(self) -> tuple[MessageItem, list[Event]]:
        """The one that is being written, and the events of its beginning if that is now."""
        if isinstance(self._item, MessageItem):
            return self._item, []
        message = MessageItem(self._next_index)
        return message, self._begin(message)

    @property
    def _next_index(self) -> int:
        return len(self.output) + (self._item is not None)

    def _begin(self, item: OutputItem) -> list[Event]:
        end = self._end("completed")
        self._item = item
        return end + item.begin()

    def _end(self, status: str) -> list[Event]:
        item, self._item = self._item, None
        if item is None:
            return []
        self.output.append(item.object(status))
        return item.end(status)
