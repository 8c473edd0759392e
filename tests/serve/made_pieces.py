"""Answers with calls and thoughts, cut into pieces in every way."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from qwench.serve.processes.engine_client import Piece

NOW = '<tool_call>{"name":"now","arguments":{}}</tool_call>'
HERE = '<tool_call>\n{"name": "here", "arguments": {"é": "</tool_call>"}}\n</tool_call>'
TEXTS = ["Hi.\n", NOW, f"See.\n{NOW}\n{HERE}\n", f"a\n{HERE} b\n{NOW}c", NOW[:-3], NOW.replace("now", "then"), ""]


def pieces(texts: Sequence[str], finish_reason: str = "stop") -> Iterator[Piece]:
    """One a token, each with its log-probability; the last ends the answer."""
    for i, text in enumerate(texts):
        yield Piece(0, text, [i], [i, text.encode().decode("latin-1"), -1.0, []], None, None, 0, None, None, None)
    yield Piece(0, "", [len(texts)], None, finish_reason, None, 0, None, None, None)  # type: ignore[arg-type]


def thinking(thought: Sequence[str], texts: Sequence[str]) -> Iterator[Piece]:
    """The same behind a thought, each of whose tokens has one of these."""
    for i, text in enumerate(thought):
        yield Piece(0, "", [i], None, None, None, 0, None, None, None, text)
    yield from pieces(texts)


def cuts(text: str) -> Iterator[list[str]]:
    yield list(text)
    for a, b in itertools.combinations(range(0, len(text) + 1, 3), 2):
        yield [text[:a], text[a:b], text[b:]]


def thoughts_and_texts() -> Iterator[tuple[str, str]]:
    for text in TEXTS:
        yield "", text
    yield "Hm. <tool_call>", f"Hi.\n{HERE}"
    yield "Hm.", ""


def ways_to_say(thought: str, text: str) -> Iterator[tuple[list[str], list[Piece]]]:
    """Pieces of this answer, whose thought, or text if it has none, is cut so."""
    for cut in cuts(thought or text):
        yield cut, list(thinking(cut, [text]) if thought else pieces(cut))
