"""What the tests of grammars share: a vocabulary."""

from __future__ import annotations

import json

import pytest

from qwench.checkpoint.tokenizer_files import byte_level_tokenizer
from qwench.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Bytes, tokens that cross the borders of JSON's parts, two special tokens and an added one that isn't special."""
    from tokenizers import AddedToken, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = ['{ "', '" :', '": "', '", "', '" }', "1 2", "1 0", "r e", "re d", "n a", "na me", "Ġ Ġ", "tru e"]
    vocab, merges = {character: i for i, character in enumerate(alphabet)}, []
    for left, right in (pair.split(" ", 1) for pair in pairs):
        for part in (left, right):
            for end in range(2, len(part) + 1):
                if part[:end] not in vocab:
                    merges.append((part[: end - 1], part[end - 1]))
                    vocab[part[:end]] = len(vocab)
        merges.append((left, right))
        vocab.setdefault(left + right, len(vocab))
    library = byte_level_tokenizer(models.BPE(vocab, list(dict.fromkeys(merges))))
    library.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    folder = tmp_path_factory.mktemp("tokenizer")
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return Tokenizer(folder)
