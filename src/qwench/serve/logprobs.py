"""Piece.logprobs as chats of every API show them: an entry for each token, with the likeliest ones in its place."""

from __future__ import annotations

from typing import Any


def token_logprobs(entries: list[list[Any]]) -> list[dict[str, Any]]:
    """Of some tokens of an answer."""
    return [{**_token(*entry[:3]), "top_logprobs": [_token(*likely) for likely in entry[3]]} for entry in entries]


def _token(token_id: int, text: str, logprob: float) -> dict[str, Any]:
    data = text.encode("latin-1")
    return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}
