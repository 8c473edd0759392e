"""tokenizer.json -> arrays that are memory-mapped in milliseconds, where parsing the JSON takes most of a second.

A published Qwen2 tokenizer.json is 11 MB with 151 thousand merges; parsing it takes longer than loading the model. The
compiler writes these tables beside it, `text/tokenizer.py` reads them. A tokenizer that isn't a plain byte-level BPE
gets no tables; the tokenizers library parses its file each time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwench.checkpoint.tokenizer_files import read_tokenizer
from qwench.errors import ArtifactError, CheckpointError
from qwench.safetensors_file import ContainerError, SafetensorsFile

TABLES = "tokenizer_tables.safetensors"
_DTYPES = {"U8": np.uint8, "I32": np.int32, "I64": np.int64}
_PLAIN = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")


@dataclass(frozen=True)
class TokenizerTables:
    """skeleton: tokenizer.json with the 256 byte tokens, byte b as id b, for vocabulary, and without merges.
    byte_ids: [256] int32, the true id of each byte's token.
    pair_keys: [merges] int64, sorted: left id << 32 | right id; pair_ranks, pair_ids: [merges] int32, the place in the
        order of merging, and the id of the merged token.
    token_ends: [vocab_size] int64, token_bytes: uint8: token i is token_bytes[token_ends[i - 1]:token_ends[i]].
    """

    skeleton: str
    byte_ids: npt.NDArray[np.int32]
    pair_keys: npt.NDArray[np.int64]
    pair_ranks: npt.NDArray[np.int32]
    pair_ids: npt.NDArray[np.int32]
    token_ends: npt.NDArray[np.int64]
    token_bytes: npt.NDArray[np.uint8]


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE: printable Latin-1 stands for itself, the rest follows from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()
_LATIN = str.maketrans({character: chr(byte) for character, byte in _BYTE_OF.items()})


def bytes_of(token: str) -> bytes:
    """The bytes of a token in the vocabulary's spelling; of an added token outside the byte alphabet, its UTF-8."""
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return token.encode()


def write_tokenizer_tables(folder: Path) -> None:
    """Writes `folder/tokenizer_tables.safetensors` if `folder/tokenizer.json` is a plain byte-level BPE."""
    tables = _tables_of(folder)
    if tables is not None:
        from safetensors.numpy import save_file  # only the compiler needs it

        skeleton = np.frombuffer(tables.skeleton.encode(), np.uint8)
        save_file({**vars(tables), "skeleton": skeleton}, folder / TABLES)


def _tables_of(folder: Path) -> TokenizerTables | None:
    """The tables of `folder/tokenizer.json`; None if they can't be made, also because it is missing or malformed."""
    try:
        tokenizer = read_tokenizer(folder)
        ids = set(tokenizer.get_vocab(with_added_tokens=False).values())
        if max(ids) >= len(ids):  # of ids that are nobody's the library warns on stdout
            return None
        return _build(json.loads(tokenizer.to_str()))
    except (CheckpointError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return None


def has_tokenizer_of_tables(folder: Path) -> bool:
    """Whether the tables in `folder` are those of its tokenizer.json, however that is formatted."""
    ours, theirs = read_tokenizer_tables(folder), _tables_of(folder)
    if ours is None or theirs is None:
        return False
    names = [name for name in vars(ours) if name != "skeleton"]
    same = all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in names)
    return same and _steps(ours) == _steps(theirs)


def _steps(tables: TokenizerTables) -> dict[str, Any]:
    """The tokenizer's settings except for the BPE model, and for padding and truncation, which qwench doesn't use."""
    skeleton = json.loads(tables.skeleton)
    return {name: step for name, step in skeleton.items() if name not in ("model", "padding", "truncation", "version")}


def read_tokenizer_tables(folder: Path) -> TokenizerTables | None:
    """The tables in `folder`, mapped, or None if there are none. Raises ArtifactError when they are damaged."""
    path = folder / TABLES
    if not path.exists():
        return None
    try:
        file = SafetensorsFile(path)
        arrays: dict[str, Any] = {n: file.raw(n).view(_DTYPES[entry.dtype]) for n, entry in file.entries.items()}
        return TokenizerTables(**arrays | {"skeleton": arrays["skeleton"].tobytes().decode()})
    except (OSError, ContainerError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} can't be read ({error}); compile the model again") from None


def _build(data: dict[str, Any]) -> TokenizerTables | None:
    model, added = data["model"], data["added_tokens"]
    vocab: dict[str, int] = model["vocab"]
    known = {(token["content"], token["id"]) for token in added}
    is_plain = (
        model["type"] == "BPE"
        and not any(model.get(option) for option in _PLAIN)
        and data["decoder"]["type"] == "ByteLevel"
        and (data.get("post_processor") or {}).get("type") in (None, "ByteLevel")
        and all(character in vocab for character in _BYTE_OF)
        and set("".join(vocab)) == set(_BYTE_OF)
    )
    if not is_plain:
        return None
    skeleton = {**data, "model": {**model, "vocab": _BYTE_OF, "merges": []}, "post_processor": None}
    pairs: dict[int, tuple[int, int]] = {}  # of a pair listed twice the later one counts, as in the library
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        pairs[vocab[left] << 32 | vocab[right]] = (rank, vocab[left + right])
    keys = np.fromiter(pairs, np.int64, len(pairs))
    values = np.array(list(pairs.values()), np.int32).reshape(-1, 2)
    order = np.argsort(keys)
    byte_ids = np.zeros(256, np.int32)
    for character, byte in _BYTE_OF.items():
        byte_ids[byte] = vocab[character]
    contents = [b""] * (max([*vocab.values(), *(token_id for _, token_id in known)]) + 1)
    for token, token_id in vocab.items():
        contents[token_id] = token.translate(_LATIN).encode("latin-1")
    for token, token_id in known:
        contents[token_id] = bytes_of(token)
    return TokenizerTables(
        json.dumps(skeleton), byte_ids, keys[order], values[order, 0], values[order, 1],
        np.cumsum([len(content) for content in contents], dtype=np.int64), np.frombuffer(b"".join(contents), np.uint8),
    )  # fmt: skip
