"""Text <-> token ids, as the checkpoint's own tokenizer files say.

Made by `LLM`, the command line and the server from a model's folder. Needs `tokenizer.json`, or Qwen2's `vocab.json`
and `merges.txt`; reads `tokenizer_config.json` and `chat_template.jinja` when they are there.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from qwench.checkpoint.json_file import read_object
from qwench.checkpoint.tokenizer_files import read_tokenizer, special_texts, special_tokens
from qwench.checkpoint.tokenizer_tables import bytes_of, read_tokenizer_tables
from qwench.errors import CheckpointError, RequestError
from qwench.runtime.structured_output.matcher import Vocabulary
from qwench.text.byte_pairs import BytePairs

SLACK = 16  # tokens: an added token with a blank in it could lie across the border
CHARACTERS_PER_TOKEN = 6  # English has 4 to 5; a beginning of so many characters nearly always decides


class TooLongError(RequestError):
    """The text can't fit the context."""


class Tokenizer:
    """Byte-level BPE. Raises CheckpointError when the files in `folder` are missing, damaged or of another kind.

    special_tokens: name ("eos_token", ...) -> text; special_ids: of all of them, and of others that are special.
    eos_token_id: None if the tokenizer names none. texts: token id -> its text by itself, None where its bytes aren't
    whole characters.
    chat_template: Jinja source, {name: source} when there are several, or None.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._config = read_object(self.folder / "tokenizer_config.json")
        self._lock = threading.Lock()
        self._bytes: dict[int, bytes] = {}
        self.texts: Mapping[int, str | None] = _Texts(self.token_bytes)
        tables = read_tokenizer_tables(self.folder)
        self._pairs = None if tables is None else BytePairs(tables)
        if self._pairs is not None:
            special = self._pairs.special_ids
        else:
            tokens = self.library.get_added_tokens_decoder()
            special = frozenset(i for i, token in tokens.items() if token.special)
        self.special_tokens = special_tokens(self._config)
        self.special_ids = special.union(special_ids(self, special_texts(self._config)))
        self._splits_special = self._config.get("split_special_tokens") is True
        self.chat_template = read_chat_template(self.folder, self._config)
        self.eos_token_id = self._special_id("eos_token")
        self.pad_token_id = self._special_id("pad_token")

    @functools.cached_property
    def library(self) -> tokenizers.Tokenizer:
        """The tokenizers library's tokenizer. With compiled tables it is only read for the first long text."""
        return read_tokenizer(self.folder)

    def encode(self, text: str, *, add_special_tokens: bool = True, allow_special: bool = True) -> list[int]:
        """Token ids of `text`. `allow_special=False`: a special token written out in it is encoded as plain text.

        `add_special_tokens`: with the tokens that the checkpoint puts around every text (none for Qwen2).
        """
        if not isinstance(text, str):
            raise RequestError(f"the text is a {type(text).__name__}, not a string")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError("the text holds half a surrogate pair, which no UTF-8 can express") from None
        allow_special = allow_special and not self._splits_special
        with self._lock:  # encode_special_tokens is a setting of the shared tokenizer
            ids = self._pairs.encode(text, allow_special) if self._pairs is not None else None
            if ids is None:
                self.library.encode_special_tokens = not allow_special
                ids = list(self.library.encode(text, add_special_tokens=add_special_tokens).ids)
        return ids

    def encode_pair(self, first: str, second: str) -> list[int]:
        """Token ids of two texts, as the checkpoint puts two together: one behind the other for Qwen2."""
        if self._pairs is not None:  # which is there where nothing is put around a text
            return self.encode(first) + self.encode(second)
        return list(self.library.encode(first, second).ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `ids`; bytes that aren't UTF-8 become U+FFFD, ids beyond the vocabulary nothing."""
        shown = [token for token in ids if not (skip_special_tokens and self.is_special(token))]
        return b"".join(map(self.token_bytes, shown)).decode("utf-8", "replace")

    def token_id(self, token: str) -> int | None:
        """The id of one token, given as the vocabulary writes it, or None."""
        if self._pairs is not None:
            return self._pairs.token_id(token)
        found = self.library.token_to_id(token)
        return None if found is None else int(found)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the bytes of the text; nothing for an id beyond the vocabulary."""
        known = self._bytes.get(token_id)
        if known is None:
            if self._pairs is not None:
                known = self._pairs.token_bytes(token_id)
            else:
                token = self.library.id_to_token(token_id)
                known = b"" if token is None else bytes_of(token)
            self._bytes[token_id] = known
        return known

    def vocabulary(self, vocab_size: int) -> Vocabulary:
        """For grammars; vocab_size: of the model's logits, which may be more than the tokenizer has."""
        if self._pairs is not None:
            tokens = self._pairs.all_token_bytes()
        else:
            tokens = [self.token_bytes(token) for token in range(vocab_size)]
        tokens = tokens[:vocab_size] + [b""] * (vocab_size - len(tokens))
        names = [token for token in self.added_ids() if token < vocab_size]
        return Vocabulary(tokens, names, functools.partial(self.encode, add_special_tokens=False))

    def byte_vocabulary(self) -> Vocabulary:
        """A small one to check grammars with, whose trie builds fast: 256 bytes and added tokens, under other ids."""
        tokens = [bytes([byte]) for byte in range(256)] + [self.token_bytes(token) for token in self.added_ids()]
        return Vocabulary(tokens, range(256, len(tokens)), lambda text: list(text.encode()))

    def added_ids(self) -> list[int]:
        added = self.library.get_added_tokens_decoder() if self._pairs is None else self._pairs.added.values()
        return sorted({*added, *self.special_ids})

    def is_special(self, token_id: int) -> bool:
        return token_id in self.special_ids

    def _special_id(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self.token_id(text)


class _Texts(dict[int, str | None]):
    """Fills itself: a token's text is decoded when it is first looked up."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        super().__init__()
        self._token_bytes = token_bytes

    def __missing__(self, token_id: int) -> str | None:
        try:
            text: str | None = self._token_bytes(token_id).decode()
        except UnicodeDecodeError:
            text = None
        self[token_id] = text
        return text


def read_chat_template(folder: Path, config: dict[str, Any]) -> str | dict[str, str] | None:
    """chat_template.jinja, else that of tokenizer_config.json: one source, or a list of named ones."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        try:
            return {str(entry["name"]): str(entry["template"]) for entry in template}
        except (KeyError, TypeError):
            raise CheckpointError("chat_template in tokenizer_config.json must list names and templates") from None
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"chat_template in tokenizer_config.json is a {type(template).__name__}, not a string")
    return template


def special_ids(tokenizer: Tokenizer, tokens: Iterable[str]) -> tuple[int, ...]:
    """The ids of those of `tokens` that the vocabulary has."""
    return tuple(i for token in tokens if (i := tokenizer.token_id(token)) is not None)


def check_size(tokenizer: Tokenizer, text: str, max_tokens: int) -> None:
    """Raises TooLongError if the beginning of `text` alone has more than `max_tokens`: a server refuses a megabyte of
    text without tokenising all of it. Words are tokenised one by one, so a beginning that ends between words has tokens
    of the whole."""
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
