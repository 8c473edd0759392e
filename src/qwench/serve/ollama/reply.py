"""An answer in Ollama's form: lines as it comes, or one object, with counts and durations at its end.

Its two subclasses, in chat.py and generate.py, say where in a line the text stands.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from qwench.serve.answers import Answers
from qwench.serve.failures import ApiError
from qwench.serve.http.streaming import EventStream, abort_when_gone, json_line
from qwench.serve.logprobs import token_logprobs
from qwench.serve.ollama.errors import OllamaErrors
from qwench.serve.processes.engine_client import Generation, Piece
from qwench.serve.protocol.ollama.requests import OllamaAnswerRequest
from qwench.serve.service import new_id
from qwench.text.thoughts import ThoughtText
from qwench.text.tool_calls import Part, ToolCall, gathered

MEDIA_TYPE = "application/x-ndjson"


def time_in(seconds: float) -> str:
    """From now, as Ollama writes times."""
    return (datetime.now(timezone.utc) + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


class Stopwatch:
    """When things happened to a request, which began when this was made. In nanoseconds."""

    def __init__(self) -> None:
        self._start = time.monotonic_ns()
        self._queued = self._first = 0

    def queued(self) -> None:
        """The prompt is known and waits for the engine."""
        self._queued = time.monotonic_ns()

    def token(self) -> None:
        """One has come."""
        self._first = self._first or time.monotonic_ns()

    def durations(self) -> dict[str, int]:
        """Up to now. Loading is whatever came before the prompt was queued."""
        end = time.monotonic_ns()
        queued = self._queued or end
        first = self._first or end
        return {
            "total_duration": end - self._start, "load_duration": queued - self._start,
            "prompt_eval_duration": max(first - queued, 1), "eval_duration": max(end - first, 1),
        }  # fmt: skip


class OllamaReply(ABC):
    """watch: of the request, whose prompt is queued."""

    def __init__(self, model: str, body: OllamaAnswerRequest, answers: Answers, watch: Stopwatch) -> None:
        self.answers = answers
        self._model, self._watch, self._has_logprobs = model, watch, bool(body.logprobs)
        self._is_stream, self._num_calls = body.is_stream, 0

    async def response(self, generation: Generation, request: Request) -> Response:
        """Raises ApiError."""
        if self._is_stream:
            return EventStream(self.lines(generation), generation, MEDIA_TYPE)
        async with abort_when_gone(request.receive, generation):
            while not generation.is_finished:
                for piece in await generation.take():
                    self.add(piece)
        return JSONResponse(self.whole())

    async def lines(self, generation: Generation) -> AsyncIterator[bytes]:
        try:
            while not generation.is_finished:
                yield b"".join(map(self.line, await generation.take()))
        except ApiError as error:
            yield json_line(OllamaErrors().show(error))
            return
        yield json_line({**self._head(True), **self.content("", "", []), **self.end()})

    def add(self, piece: Piece) -> list[Part]:
        """Takes a piece."""
        if piece.token_ids:
            self._watch.token()
        return self.answers.add(piece)

    def line(self, piece: Piece) -> bytes:
        """Nothing while nothing that a piece holds is certain, unless it has log-probabilities to show."""
        parts = self.add(piece)
        thought = "".join(part.text for part in parts if isinstance(part, ThoughtText))
        rest = gathered(part for part in parts if not isinstance(part, ThoughtText))
        text = "".join(part for part in rest if isinstance(part, str))
        calls = [part for part in rest if isinstance(part, ToolCall)]
        logprobs = self._logprobs([piece.logprobs] if piece.logprobs is not None else [])
        if not (thought or text or calls or logprobs):
            return b""
        return json_line({**self._head(False), **self.content(text, thought, self._calls(calls)), **logprobs})

    def whole(self) -> dict[str, Any]:
        answer = self.answers.choices[0]
        content = self.content(answer.text, answer.reasoning, self._calls(answer.calls))
        return {**self._head(True), **content, **self._logprobs(answer.logprobs), **self.end()}

    @abstractmethod
    def content(self, text: str, thought: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """The fields that hold what the model said."""

    def _head(self, is_done: bool) -> dict[str, Any]:
        return {"model": self._model, "created_at": time_in(0), "done": is_done}

    def end(self) -> dict[str, Any]:
        """What is known once all is there."""
        is_cut = self.answers.choices[0].finish_reason == "length"
        counts = {"prompt_eval_count": self.answers.num_prompt, "eval_count": self.answers.num_generated}
        return {"done_reason": "length" if is_cut else "stop", **self._watch.durations(), **counts}

    def _logprobs(self, entries: list[list[Any]]) -> dict[str, Any]:
        return {"logprobs": token_logprobs(entries)} if self._has_logprobs and entries else {}

    def _calls(self, calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
        first = self._num_calls
        self._num_calls += len(calls)
        return [
            {"id": new_id("call", "_"),
             "function": {"index": i, "name": call.name, "arguments": json.loads(call.arguments or "{}")}}
            for i, call in enumerate(calls, first)
        ]  # fmt: skip


def without_answer(model: str, body: OllamaAnswerRequest, content: dict[str, Any]) -> Response:
    """To a request that only wants the model to be there, or to be gone."""
    reason = "unload" if body.lets_go else "load"
    return JSONResponse({"model": model, "created_at": time_in(0), **content, "done": True, "done_reason": reason})
