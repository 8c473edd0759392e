"""The tokenizer of a checkpoint's folder, as transformers reads it for a Qwen2.

transformers 5 takes the vocabulary, the merges and the post-processor from tokenizer.json, and all else from its class
Qwen2Tokenizer and from tokenizer_config.json: so the file's normaliser, pre-tokenizer, truncation and padding count for
nothing, and neither do add_bos_token and add_eos_token. 4.57 took the file as it is, and set its add_prefix_space. Read
by `tokenizer_tables.py` and `text/tokenizer.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from qwench.checkpoint.json_file import read_object
from qwench.errors import CheckpointError

# Qwen2's pre-tokenizer: contractions, letters, single digits, punctuation, newlines, blanks.
PRETOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
DEFAULT_SPECIAL = "<|endoftext|>"  # of the class, as these where the config doesn't speak of them
DEFAULT_NAMES = ("unk_token", "eos_token", "pad_token")
OLDER_TOKENS = (DEFAULT_SPECIAL, "<|im_start|>", "<|im_end|>")  # of folders with vocab.json alone
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").exists() or (folder / "vocab.json").exists()


def read_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizers library's tokenizer. Raises CheckpointError if there is none, or it isn't a byte-level BPE."""
    config = read_object(folder / "tokenizer_config.json")
    path = folder / "tokenizer.json"
    data = read_object(path)
    if data:
        tokenizer = _frame(_bpe(data, path), bool(config.get("add_prefix_space")))
        _set_post_processor(tokenizer, data, path)
        entries = _added_tokens(config.get("added_tokens_decoder") or {}, data.get("added_tokens") or [], path)
    else:
        entries = config.get("added_tokens_decoder") or {}
        tokenizer = _frame(_older_bpe(folder)) if entries else byte_level_tokenizer(_older_bpe(folder))
    _add_tokens(tokenizer, entries)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    named = [token for token in special_texts(config) if token not in known]
    tokenizer.add_tokens([AddedToken(token, special=True) for token in dict.fromkeys(named)])
    return tokenizer


def byte_level_tokenizer(model: models.BPE) -> tokenizers.Tokenizer:
    """Qwen2's tokenizer around a BPE vocabulary, with its special tokens."""
    tokenizer = _frame(model)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in OLDER_TOKENS])
    return tokenizer


def _frame(model: models.BPE, add_prefix_space: bool = False) -> tokenizers.Tokenizer:
    """NFC, the pre-tokenizer, the byte-level alphabet."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZER), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _bpe(data: dict[str, Any], path: Path) -> models.BPE:
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise CheckpointError(f"{path} isn't a byte-level BPE; Qwen2's is, and its model is {kind!r}")
    decoder = data.get("decoder")
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel" or model.get("byte_fallback"):
        raise CheckpointError(f"the tokenizer in {path.parent} isn't a byte-level BPE; Qwen2's is")
    try:
        merges: Any = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
        return models.BPE(vocab=model["vocab"], merges=merges)
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path} isn't a tokenizer: {error}") from None


def _older_bpe(folder: Path) -> models.BPE:
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocab.exists() and merges.exists()):
        raise CheckpointError(f"{folder} has neither tokenizer.json nor vocab.json with merges.txt")
    try:
        return models.BPE.from_file(str(vocab), str(merges))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{vocab} and {merges} aren't a BPE vocabulary: {error}") from None


def _set_post_processor(tokenizer: tokenizers.Tokenizer, data: dict[str, Any], path: Path) -> None:
    """That of the file, which only the library can read, as part of a tokenizer."""
    if data.get("post_processor") is None:
        return
    frame = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}
    try:
        read = tokenizers.Tokenizer.from_str(json.dumps(frame | {"post_processor": data["post_processor"]}))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path} has a post_processor that can't be used: {error}") from None
    tokenizer.post_processor = read.post_processor


def _added_tokens(of_config: Any, of_file: Any, path: Path) -> dict[Any, Any]:
    """Id -> token: those of tokenizer_config.json if it has any, and of the file what comes before them."""
    try:
        first = min(map(int, of_config), default=None)
        listed = {int(token["id"]): token for token in of_file}
        return {i: token for i, token in listed.items() if first is None or i < first} | dict(of_config)
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(f"{path} isn't a tokenizer: added_tokens or added_tokens_decoder is malformed") from None


def _add_tokens(tokenizer: tokenizers.Tokenizer, entries: Any) -> None:
    """Added tokens in the order of their ids, so that they get them."""
    try:
        wanted = sorted((int(i), dict(entry)) for i, entry in entries.items())
        tokens = [AddedToken(str(entry["content"]), **{k: bool(entry.get(k)) for k in FLAGS}) for _, entry in wanted]
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"added_tokens_decoder in tokenizer_config.json is malformed: {error!r}") from None
    tokenizer.add_tokens(tokens)
    for (token_id, _), token in zip(wanted, tokens, strict=True):
        if tokenizer.token_to_id(token.content) != token_id:
            raise CheckpointError(
                f"the checkpoint gives {token.content!r} the id {token_id}, the tokenizer "
                f"{tokenizer.token_to_id(token.content)}"
            )


def special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Those of SPECIAL_NAMES that tokenizer_config.json names, each as its text or as an object with `content`."""
    return {name: text for name in SPECIAL_NAMES for text in _texts([config.get(name)])}


def special_texts(config: dict[str, Any]) -> list[str]:
    """All special tokens: the named ones, the class's own, the extra ones, a list or a dict by name."""
    named = special_tokens({**dict.fromkeys(DEFAULT_NAMES, DEFAULT_SPECIAL), **config} if config else config)
    extra: list[str] = []
    for key in ("extra_special_tokens", "additional_special_tokens"):
        given = config.get(key) or []
        extra += _texts(given.values() if isinstance(given, dict) else given)
    return [*named.values(), *extra]


def _texts(values: Iterable[Any]) -> list[str]:
    contents = [value.get("content") if isinstance(value, dict) else value for value in values]
    return [content for content in contents if isinstance(content, str)]
