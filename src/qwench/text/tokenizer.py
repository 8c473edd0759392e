"""Text <-> token ids, as the checkpoint's own tokenizer files say.

Knows nothing of engines or of chat turns. Made by `LLM`, the command line and the server from a model's folder. Needs
`tokenizer.json`, or Qwen2's `vocab.json` and `merges.txt`; reads `tokenizer_config.json` and `chat_template.jinja`
when they are there.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from qwench.errors import CheckpointError, RequestError

# Qwen2's pre-tokenizer: contractions, letters, single digits, punctuation, newlines, blanks.
PRETOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """Byte-level BPE. Raises CheckpointError when the files in `folder` are missing, damaged or of another kind.

    special_tokens: name ("eos_token", ...) -> text. eos_token_id: None if the tokenizer names none.
    chat_template: Jinja source, {name: source} when there are several, or None.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        config = _read_json(folder / "tokenizer_config.json")
        self._tokenizer = _read_tokenizer(folder)
        if not isinstance(self._tokenizer.decoder, decoders.ByteLevel):
            raise CheckpointError(f"the tokenizer in {folder} isn't a byte-level BPE; Qwen2's is")
        self._lock = threading.Lock()
        _add_tokens(self._tokenizer, config)
        self.special_tokens = _special_tokens(config)
        self.chat_template = _chat_template(folder, config)
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.eos_token_id = self._special_id("eos_token")
        self.pad_token_id = self._special_id("pad_token")
        self._bos = self._special_id("bos_token") if config.get("add_bos_token") else None
        self._special_ids = frozenset(i for i, t in self._tokenizer.get_added_tokens_decoder().items() if t.special)
        self._bytes: dict[int, bytes] = {}

    def encode(self, text: str, *, add_special_tokens: bool = True, allow_special: bool = True) -> list[int]:
        """Token ids of `text`. `allow_special=False`: a special token written out in it is encoded as plain text.

        `add_special_tokens`: with what the checkpoint puts around every text (nothing for Qwen2).
        """
        try:
            with self._lock:  # the switch belongs to the shared tokenizer
                self._tokenizer.encode_special_tokens = not allow_special
                ids = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except (UnicodeEncodeError, TypeError):
            if not isinstance(text, str):
                raise RequestError(f"the text is a {type(text).__name__}, not a string") from None
            raise RequestError("the text holds half a surrogate pair, which no UTF-8 can express") from None
        if add_special_tokens and self._bos is not None and ids[:1] != [self._bos]:
            ids = [self._bos, *ids]
        return list(ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `ids`; bytes that aren't UTF-8 become U+FFFD, ids beyond the vocabulary nothing."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_id(self, token: str) -> int | None:
        """The id of one token given by its text, or None."""
        found = self._tokenizer.token_to_id(token)
        return None if found is None else int(found)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the bytes of the text; nothing for an id beyond the vocabulary."""
        known = self._bytes.get(token_id)
        if known is None:
            token = self._tokenizer.id_to_token(token_id)
            known = self._bytes[token_id] = b"" if token is None else _bytes_of(token)
        return known

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids

    def _special_id(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self.token_id(text)


def _bytes_of(token: str) -> bytes:
    """A token is written in byte-level BPE's alphabet; an added one that has other characters stands for itself."""
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return token.encode()


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte: printable Latin-1 stands for itself, the rest follows from U+0100 on (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; empty when there is no such file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, not a JSON object")
    return data


def has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").exists() or (folder / "vocab.json").exists()


def _read_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    path = folder / "tokenizer.json"
    if path.exists():
        try:
            return tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{path} isn't a tokenizer: {error}") from None
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocab.exists() and merges.exists()):
        raise CheckpointError(f"{folder} has neither tokenizer.json nor vocab.json with merges.txt")
    try:
        model = models.BPE.from_file(str(vocab), str(merges))
    except Exception as error:
        raise CheckpointError(f"{vocab} and {merges} aren't a BPE vocabulary: {error}") from None
    return byte_level_tokenizer(model)


def byte_level_tokenizer(model: models.BPE) -> tokenizers.Tokenizer:
    """Qwen2's tokenizer around a BPE vocabulary: NFC, its pre-tokenizer, byte-level alphabet, its special tokens."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZER), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    return tokenizer


def _add_tokens(tokenizer: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    """Tokens of tokenizer_config.json that the tokenizer lacks, in the order of their ids, so that they get them."""
    entries = config.get("added_tokens_decoder") or {}
    try:
        wanted = sorted((int(i), dict(entry)) for i, entry in entries.items())
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"added_tokens_decoder in tokenizer_config.json is malformed: {error}") from None
    for token_id, entry in wanted:
        content = entry.pop("content", None)
        if tokenizer.token_to_id(str(content)) == token_id:
            continue
        flags = {k: bool(entry.get(k, False)) for k in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        tokenizer.add_tokens([AddedToken(str(content), **flags)])
        if tokenizer.token_to_id(str(content)) != token_id:
            raise CheckpointError(
                f"tokenizer_config.json gives {content!r} the id {token_id}, the tokenizer "
                f"{tokenizer.token_to_id(str(content))}"
            )


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name in SPECIAL_NAMES:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            found[name] = value
    return found


def _chat_template(folder: Path, config: dict[str, Any]) -> str | dict[str, str] | None:
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
