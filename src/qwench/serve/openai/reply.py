"""The object, or the stream of chunks, that holds the choices of a chat or a completion.

Its two subclasses, in chat.py and completions.py, make a choice and the chunks of a piece.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from qwench.serve.answers import Answers
from qwench.serve.http.streaming import DONE, EventStream, abort_when_gone, event
from qwench.serve.processes.engine_client import Generation, Piece
from qwench.serve.protocol.validation.body import StreamOptions
from qwench.serve.service import new_id


class Reply(ABC):
    """kind: of OpenAI's whole object; prefix: of its id. stream_options: of the request."""

    def __init__(
        self, prefix: str, kind: str, model: str, answers: Answers, stream_options: StreamOptions | None
    ) -> None:  # fmt: skip
        self.answers = answers
        self._include_usage = bool(stream_options and stream_options.include_usage)
        self._counts_on = bool(stream_options and stream_options.continuous_usage_stats)
        self._head = {"id": new_id(prefix), "object": kind, "created": int(time.time()), "model": model}

    async def response(self, generation: Generation, request: Request, *, is_stream: bool) -> Response:
        """Raises ApiError."""
        if is_stream:
            return EventStream(self.events(generation), generation)
        async with abort_when_gone(request.receive, generation):
            await self.answers.gather(generation)
        return JSONResponse(self.whole())

    def whole(self) -> dict[str, Any]:
        choices = [self.choice(index) for index in range(len(self.answers.choices))]
        return {**self._head, "choices": choices, "usage": self._usage()}

    def _usage(self) -> dict[str, Any]:
        num_prompt, num_generated = self.answers.num_prompt, self.answers.num_generated
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_generated,
            "total_tokens": num_prompt + num_generated,
            "prompt_tokens_details": {"cached_tokens": self.answers.num_cached},
            "completion_tokens_details": {"reasoning_tokens": self.answers.num_reasoning},
        }

    async def events(self, generation: Generation) -> AsyncIterator[bytes]:
        yield self.beginning()
        while not generation.is_finished:
            yield b"".join(map(self.piece, await generation.take()))
        if self._include_usage:
            yield event({**self._head, "choices": [], "usage": self._usage()})
        yield DONE

    @abstractmethod
    def choice(self, index: int) -> dict[str, Any]:
        """An answer in the whole object, once all is there."""

    @abstractmethod
    def beginning(self) -> bytes:
        """Events before the first piece."""

    @abstractmethod
    def piece(self, piece: Piece) -> bytes:
        """Events that tell of a piece, which `answers` does not know yet."""

    def chunk(
        self, index: int, content: dict[str, Any], logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None, stop_reason: int | str | None = None,
    ) -> bytes:  # fmt: skip
        """An event with one choice. content: its delta or its text."""
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}
        if finish_reason is not None:
            choice["stop_reason"] = stop_reason
        chunk = {**self._head, "choices": [choice]}
        if self._include_usage:
            chunk["usage"] = self._usage() if self._counts_on else None
        return event(chunk)
