"""Byte-pair encoding with the compiled tables: the same ids as the tokenizers library, without loading its file.

The library still finds special tokens, normalises and splits into words; the merges are done here, for all words at
once. For short texts; on long ones the library is faster, its loading included. Called by `tokenizer.py`.
"""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import tokenizers

from qwench.checkpoint.tokenizer_tables import TokenizerTables, bytes_of

MAX_TEXT = 8192  # characters; more take the library less time, its reading of tokenizer.json included
MAX_WORD = 256  # bytes; each round merges one pair per word

Int64 = npt.NDArray[np.int64]


class BytePairs:
    """Encodes short texts; knows every token's bytes. added: text of each added token -> id; some are special."""

    def __init__(self, tables: TokenizerTables) -> None:
        self._tables = tables
        self._skeleton = tokenizers.Tokenizer.from_str(tables.skeleton)
        entries = json.loads(tables.skeleton)["added_tokens"]
        self.added: dict[str, int] = {entry["content"]: entry["id"] for entry in entries}
        self.special_ids = frozenset(int(entry["id"]) for entry in entries if entry["special"])
        # The skeleton numbers bytes by their value, and added tokens from 256 on.
        self._true_ids = np.zeros(self._skeleton.get_vocab_size(with_added_tokens=True), np.int64)
        self._true_ids[:256] = tables.byte_ids
        for content, token_id in self.added.items():
            self._true_ids[self._skeleton.token_to_id(content)] = token_id

    def encode(self, text: str, allow_special: bool) -> list[int] | None:
        """Ids of `text`, or None if it is too long, as a whole or in one of its words."""
        if len(text) > MAX_TEXT:
            return None
        self._skeleton.encode_special_tokens = not allow_special
        encoding = self._skeleton.encode(text, add_special_tokens=False)
        if not encoding.ids:
            return []
        ids, words = self._true_ids[encoding.ids], np.array(encoding.word_ids, np.int64)
        if int(np.bincount(words).max()) > MAX_WORD:
            return None
        return [int(token) for token in self._merge(ids, words)]

    def _merge(self, ids: Int64, words: Int64) -> Int64:
        """Merges in each word the pair that comes first in the order of merges, the leftmost of equals, until none is
        left. ids, words: [n], the token and the number of the word that it is in, increasing."""
        tables = self._tables
        while len(tables.pair_keys):
            keys = ids[:-1] << 32 | ids[1:]
            at = np.minimum(np.searchsorted(tables.pair_keys, keys), len(tables.pair_keys) - 1)
            places = np.flatnonzero((tables.pair_keys[at] == keys) & (words[:-1] == words[1:]))
            if len(places) == 0:
                break
            places = places[np.lexsort((places, tables.pair_ranks[at[places]], words[places]))]
            is_first = np.diff(words[places], prepend=-1) != 0  # of its word; np.unique would import numpy.ma
            chosen = places[is_first]
            ids[chosen] = tables.pair_ids[at[chosen]]
            ids, words = np.delete(ids, chosen + 1), np.delete(words, chosen + 1)
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """What the token stands for; nothing for an id beyond the vocabulary."""
        ends = self._tables.token_ends
        if not 0 <= token_id < len(ends):
            return b""
        start = int(ends[token_id - 1]) if token_id else 0
        return self._tables.token_bytes[start : int(ends[token_id])].tobytes()

    def all_token_bytes(self) -> list[bytes]:
        """`token_bytes` of all ids of the vocabulary."""
        ends, data = self._tables.token_ends.tolist(), self._tables.token_bytes.tobytes()
        return [data[start:end] for start, end in zip([0, *ends], ends)]

    def token_id(self, token: str) -> int | None:
        """The id of the token that is written so in the vocabulary."""
        if token in self.added:
            return self.added[token]
        wanted = bytes_of(token)
        lengths = np.diff(self._tables.token_ends, prepend=0)
        same_length = np.flatnonzero(lengths == len(wanted)).tolist()
        return next((i for i in same_length if wanted and self.token_bytes(i) == wanted), None)
