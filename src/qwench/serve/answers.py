"""Pieces of a Generation gathered into whole answers, with their text, tool calls and token counts.

Knows no API's JSON. Made by the routes of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qwench.serve.processes.engine_client import Generation, Piece
from qwench.text.call_reader import CallStart
from qwench.text.thoughts import ThoughtText
from qwench.text.tool_calls import Part, ToolCall, ToolCallParser, gathered, joined

THINKING = "thinking"


@dataclass
class Answer:
    """One choice, as it grows. logprobs: Piece.logprobs of each token that isn't the end of the answer."""

    parts: list[Part] = field(default_factory=list)
    num_calls: int = 0  # that were begun
    num_tokens: int = 0
    num_reasoning_tokens: int = 0  # of num_tokens, the first ones
    logprobs: list[list[Any]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def reasoning(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, ThoughtText))

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def calls(self) -> list[ToolCall]:
        return [part for part in gathered(self.parts) if isinstance(part, ToolCall)]


class Answers:
    """All choices of a request to prompts of `prompt_lengths` tokens, `n` for each.

    make_parser: a reader of tool calls for one choice, or None where all is text.
    """

    def __init__(
        self, prompt_lengths: list[int], n: int, make_parser: Callable[[], ToolCallParser | None] = lambda: None
    ) -> None:
        self.choices = [Answer() for _ in range(len(prompt_lengths) * n)]
        self._parsers = [make_parser() for _ in self.choices]
        self._prompt_lengths, self._n = prompt_lengths, n
        self._num_cached = [0] * len(prompt_lengths)
        self.prompt_logprobs: list[list[list[Any]]] = [[] for _ in prompt_lengths]  # Piece.prompt_logprobs

    def add(self, piece: Piece) -> list[Part]:
        """Takes a piece. Returns what is certain now of thought, text and calls; of an answer's last piece, the rest.

        The finish_reason is "tool_calls" where the model ended an answer that has some; the stop_reason is "thinking"
        where an answer ended while the model thought.
        """
        answer, parts = self.choices[piece.choice], self._parts(piece)
        answer.parts += parts
        answer.num_calls += sum(isinstance(part, CallStart) for part in parts)
        answer.num_tokens += len(piece.token_ids)
        if piece.reasoning is not None:
            answer.num_reasoning_tokens = answer.num_tokens
        if piece.logprobs is not None:
            answer.logprobs.append(piece.logprobs)
        if piece.prompt_logprobs is not None:
            self.prompt_logprobs[piece.choice // self._n] = piece.prompt_logprobs
        if piece.finish_reason is not None:
            has_called = piece.finish_reason == "stop" and answer.num_calls
            answer.finish_reason = "tool_calls" if has_called else piece.finish_reason
            answer.stop_reason = piece.stop_reason if piece.reasoning is None else THINKING
            prompt = piece.choice // self._n
            self._num_cached[prompt] = max(self._num_cached[prompt], piece.num_cached)
        return parts

    def _parts(self, piece: Piece) -> list[Part]:
        """A tag in the thought is no call."""
        thought: list[Part] = [ThoughtText(piece.reasoning)] if piece.reasoning else []
        parser = self._parsers[piece.choice]
        if parser is None:
            return [*thought, piece.text] if piece.text else thought
        parts = parser.push(piece.text)
        return thought + joined(parts if piece.finish_reason is None else [*parts, *parser.flush()])

    async def gather(self, generation: Generation) -> None:
        """Takes all there is to come. Raises ApiError when the engine fails."""
        while not generation.is_finished:
            for piece in await generation.take():
                self.add(piece)

    @property
    def num_generated(self) -> int:
        return sum(answer.num_tokens for answer in self.choices)

    @property
    def num_reasoning(self) -> int:
        """Of the generated ones, those of thoughts and their tags."""
        return sum(answer.num_reasoning_tokens for answer in self.choices)

    @property
    def num_prompt(self) -> int:
        """Each prompt counts once, however many answers it gets."""
        return sum(self._prompt_lengths)

    @property
    def num_cached(self) -> int:
        return sum(self._num_cached)
