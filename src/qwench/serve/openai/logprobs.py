"""Piece.logprobs in OpenAI's shapes: of chats and responses, and of completions."""

from __future__ import annotations

from typing import Any

from qwench.serve.failures import ApiError
from qwench.serve.logprobs import token_logprobs


def chat_logprobs(entries: list[list[Any]]) -> dict[str, Any]:
    """Piece.logprobs of some tokens as a chat answer shows them."""
    return {"content": token_logprobs(entries), "refusal": None}


def check_prompt_logprobs(wanted: int | None, stream: bool | None) -> None:
    """Raises ApiError: vLLM, whose field it is, has them in whole answers alone."""
    if wanted is not None and stream:
        raise ApiError.bad_request(
            "prompt_logprobs come with whole answers, not with a stream", param="prompt_logprobs"
        )


def prompt_logprobs(entries: list[list[Any]]) -> list[dict[str, Any] | None]:
    """Piece.prompt_logprobs as vLLM shows them: for each token of the prompt but the first the token and the likeliest
    ones by their ids. rank: null of a token that isn't among the likeliest, which nobody counted."""
    return [None if entry[2] is None else _by_id(entry) for entry in entries]


def _by_id(entry: list[Any]) -> dict[str, Any]:
    ranked = {str(token): _ranked(text, logprob, rank) for rank, (token, text, logprob) in enumerate(entry[3], 1)}
    token, text, logprob, _ = entry
    return {str(token): ranked.get(str(token)) or _ranked(text, logprob, None)} | ranked


def _ranked(text: str, logprob: float, rank: int | None) -> dict[str, Any]:
    return {"logprob": logprob, "rank": rank, "decoded_token": _readable(text)}


def completion_logprobs(entries: list[list[Any]], offset: int) -> dict[str, Any]:
    """The same as a completion shows them; offset: characters of the text before the first of them."""
    tokens = [_readable(entry[1]) for entry in entries]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [entry[2] for entry in entries],
        "top_logprobs": [_likeliest(entry) for entry in entries],
        "text_offset": offsets,
    }


def _likeliest(entry: list[Any]) -> dict[str, float] | None:
    """None of a prompt's first token."""
    return None if entry[2] is None else {_readable(text): logprob for _, text, logprob in entry[3]}


def _readable(text: str) -> str:
    """A token's text; where its bytes aren't whole characters, as OpenAI writes them: bytes:\\xe2\\x98."""
    data = text.encode("latin-1")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
