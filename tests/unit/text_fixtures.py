"""Tokenizers for the text tests: Qwen2's own from ../shared/data, and a tiny byte-level BPE made here."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

import pytest
from tokenizers import models

from qwench.checkpoint.tokenizer_files import byte_level_tokenizer
from qwench.text.tokenizer import Tokenizer

SHARED = Path(__file__).parents[3] / "shared/data/qwen2-tokenizer"


@cache
def qwen2_tokenizer() -> Tokenizer:
    if not SHARED.exists():
        pytest.skip("needs ../shared/data/qwen2-tokenizer")
    return Tokenizer(SHARED)


def byte_alphabet() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]


def tiny_model() -> models.BPE:
    """Bytes and a few merges, one of which ends inside a character."""
    vocab = {character: i for i, character in enumerate(byte_alphabet())}
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "hello"), ("ð", "Ł")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    return models.BPE(vocab, merges)


def write_tiny(folder: Path, **config: object) -> Path:
    """A folder with the tiny tokenizer and a tokenizer_config.json."""
    byte_level_tokenizer(tiny_model()).save(str(folder / "tokenizer.json"))
    defaults = {"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"}, "bos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(defaults | config))
    return folder


@cache
def tiny_tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return Tokenizer(write_tiny(Path(folder)))
