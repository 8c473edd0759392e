"""Whether a text is certainly too long for a context, found out from its beginning.

Words are tokenised one by one, so that the tokens of a text up to the border of a word are among the tokens of the
whole. Called by the server, which must refuse a megabyte of text without tokenising it.
"""

from __future__ import annotations

from qwench.errors import RequestError
from qwench.text.tokenizer import Tokenizer

SLACK = 16  # tokens: an added token with a blank in it could lie across the border
CHARACTERS_PER_TOKEN = 6  # English has 4 to 5; a beginning of so many characters nearly always decides


class TooLongError(RequestError):
    """The text can't fit the context."""


def check_size(tokenizer: Tokenizer, text: str, max_tokens: int) -> None:
    """Raises TooLongError if `text` is certainly longer than `max_tokens`; says nothing where it would take long."""
    size = (max_tokens + SLACK) * CHARACTERS_PER_TOKEN
    if len(text) <= 2 * size:
        return
    end = text.rfind(" ", 0, size)
    while end > 0 and not text[end - 1].isalpha():  # between a letter and a blank there's always a border
        end = text.rfind(" ", 0, end)
    if end > 0 and (count := len(tokenizer.encode(text[:end], add_special_tokens=False))) > max_tokens + SLACK:
        raise TooLongError(
            f"the prompt has {len(text)} characters; its first {end} are {count} tokens already, more than the "
            f"{max_tokens} of the context"
        )
