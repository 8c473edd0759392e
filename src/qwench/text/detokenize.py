"""Tokens -> text as they come: each call gives the text that is now certain, never half a character.

Knows only how many bytes each token stands for. The pieces joined, `flush` included, are exactly
`Tokenizer.decode` of all the ids, and a token costs the same however long the text is.
"""

from __future__ import annotations

import codecs

from qwench.text.tokenizer import Tokenizer


class Detokenizer:
    """The text of one answer."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        # "replace" gives one U+FFFD per broken sequence, as the tokenizers library does.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes; "" while a character is still open."""
        if self._skip and self._tokenizer.is_special(token_id):
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed."""
        return self._decoder.decode(b"", final=True)
