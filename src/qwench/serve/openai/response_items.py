"""The items of a response as they come, messages and function calls, and the events that tell of them.

Called by responses.py, which has the response object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from qwench.serve.openai.logprobs import chat_logprobs
from qwench.serve.service import new_id
from qwench.text.call_reader import CallArguments, CallStart
from qwench.text.tool_calls import Part


class MakeEvent(Protocol):
    def __call__(self, type: str, **fields: Any) -> bytes: ...


class ResponseItems:
    """output: items that are done, as the response object has them."""

    def __init__(self, make_event: MakeEvent) -> None:
        self.output: list[dict[str, Any]] = []
        self._event = make_event
        self._message: _Message | None = None  # the one that is being written
        self._call: _Call | None = None  # the same
        self._logprobs: list[list[Any]] = []  # of tokens whose text isn't certain yet

    def add(self, parts: Sequence[Part], logprobs: list[Any] | None) -> bytes:
        """Events that tell of the parts that a token made certain. logprobs: the token's, as in Piece.

        Tokens of a call show no log-probabilities: an item for a call has no room for them.
        """
        if logprobs is not None:
            self._logprobs.append(logprobs)
        return b"".join(map(self._part, parts))

    def end(self, status: str) -> bytes:
        """The last events. An answer without anything is an empty message."""
        is_text = self._message is not None or not self.output
        last = self._text("") if is_text and self._logprobs else b""
        begin = self._begin_message() if is_text and self._message is None else b""
        return last + begin + self._end_message(status)

    def _part(self, part: Part) -> bytes:
        if isinstance(part, str):
            return self._text(part)
        if isinstance(part, CallStart):
            return self._begin_call(part.name)
        if isinstance(part, CallArguments):
            return self._call_arguments(part.text)
        return self._end_call("completed" if part.is_whole else "incomplete")

    def _text(self, text: str) -> bytes:
        begin = self._begin_message() if self._message is None else b""
        assert self._message is not None
        logprobs, self._logprobs = chat_logprobs(self._logprobs)["content"], []
        self._message.texts.append(text)
        self._message.logprobs += logprobs
        delta = self._event("response.output_text.delta", **self._message.place, delta=text, logprobs=logprobs)
        return begin + delta

    def _begin_call(self, name: str) -> bytes:
        end, self._logprobs = self._end_message("completed"), []
        self._call = call = _Call(new_id("fc"), new_id("call"), name, len(self.output))
        return end + self._event("response.output_item.added", output_index=call.index, item=call.item("in_progress"))

    def _call_arguments(self, text: str) -> bytes:
        assert self._call is not None
        self._call.arguments.append(text)
        return self._event("response.function_call_arguments.delta", **self._call.place, delta=text)

    def _end_call(self, status: str) -> bytes:
        call, self._call = self._call, None
        assert call is not None
        item = call.item(status)
        self.output.append(item)
        whole = {"name": call.name, "arguments": item["arguments"]}
        return b"".join((
            self._event("response.function_call_arguments.done", **call.place, **whole),
            self._event("response.output_item.done", output_index=call.index, item=item),
        ))  # fmt: skip

    def _begin_message(self) -> bytes:
        self._message = message = _Message(new_id("msg"), len(self.output))
        item = message.item("in_progress") | {"content": []}
        return b"".join((
            self._event("response.output_item.added", output_index=message.index, item=item),
            self._event("response.content_part.added", **message.place, part=message.part()),
        ))  # fmt: skip

    def _end_message(self, status: str) -> bytes:
        message, self._message = self._message, None
        if message is None:
            return b""
        part, item = message.part(), message.item(status)
        self.output.append(item)
        text = {"text": part["text"], "logprobs": part["logprobs"]}
        return b"".join((
            self._event("response.output_text.done", **message.place, **text),
            self._event("response.content_part.done", **message.place, part=part),
            self._event("response.output_item.done", output_index=message.index, item=item),
        ))  # fmt: skip


class _Message:
    """A message item while it is written. place: what its events say of it."""

    def __init__(self, item_id: str, index: int) -> None:
        self.index, self._id = index, item_id
        self.place = {"item_id": item_id, "output_index": index, "content_index": 0}
        self.texts: list[str] = []
        self.logprobs: list[dict[str, Any]] = []

    def part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": "".join(self.texts), "annotations": [], "logprobs": self.logprobs}

    def item(self, status: str) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "status": status, "role": "assistant", "content": [self.part()]}


class _Call:
    """A function_call item while it is written. place: what its events say of it."""

    def __init__(self, item_id: str, call_id: str, name: str, index: int) -> None:
        self.index, self.name, self._id, self._call_id = index, name, item_id, call_id
        self.place = {"item_id": item_id, "output_index": index}
        self.arguments: list[str] = []

    def item(self, status: str) -> dict[str, Any]:
        return {
            "id": self._id, "type": "function_call", "status": status, "arguments": "".join(self.arguments),
            "call_id": self._call_id, "name": self.name,
        }  # fmt: skip
