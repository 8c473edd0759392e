"""The prompts that a comparison runs: the shipped set, a user's file, or random token ids where there's no tokenizer.

Knows tokenizers, not models. Called by `qwench verify`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from qwench.errors import RequestError
from qwench.targets.target import Int32
from qwench.text.tokenizer import Tokenizer

SHIPPED = "prompts.json"
NUM_RANDOM, RANDOM_TOKENS = 20, 56  # prompts without a tokenizer: 20 of up to 56 tokens, 1,120 in all
DEFAULT_MAX_TOKENS = 512


@dataclass(frozen=True)
class Prompt:
    """name: what reports call it. token_ids: [n] int32, at least two."""

    name: str
    token_ids: Int32


def load_prompts(
    file: Path | None, tokenizer: Tokenizer | None, vocab_size: int, max_tokens: int, seed: int = 0
) -> list[Prompt]:
    """Prompts of `file`, else the shipped ones, else, without a tokenizer, random ids made from `seed`.

    Each is cut to `max_tokens`. A file is JSON (a list of texts, of objects with a `prompt`, or of lists of token ids)
    or plain text with a prompt a line. Raises RequestError when it can't be read or used.
    """
    if file is None and tokenizer is None:
        return random_prompts(vocab_size, min(max_tokens, RANDOM_TOKENS), seed)
    entries = _shipped() if file is None else _read(file)
    where = "the shipped prompts" if file is None else str(file)
    prompts = []
    for index, (name, entry) in enumerate(entries):
        if isinstance(entry, str):
            if tokenizer is None:
                raise RequestError(f"{where} holds text, but the model has no tokenizer; give lists of token ids")
            ids = np.array(tokenizer.encode(entry), np.int32)
        else:
            ids = np.array(entry, np.int64)
            if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < vocab_size):
                raise RequestError(f"prompt {index} of {where} has a token id outside 0 to {vocab_size - 1}")
            ids = ids.astype(np.int32)
        if len(ids) >= 2:  # a single token predicts nothing that could be compared with a next one
            prompts.append(Prompt(name, ids[:max_tokens]))
    if not prompts:
        raise RequestError(f"{where} holds no prompt of two tokens or more")
    return prompts


def random_prompts(vocab_size: int, length: int, seed: int) -> list[Prompt]:
    """NUM_RANDOM prompts of `length` random ids."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocab_size, (NUM_RANDOM, max(2, length))).astype(np.int32)
    return [Prompt(f"random {i}", row) for i, row in enumerate(ids)]


def _shipped() -> list[tuple[str, Any]]:
    data = json.loads((resources.files("qwench.evaluate") / "data" / SHIPPED).read_text(encoding="utf-8"))
    return [(entry["name"], entry["prompt"]) for entry in data]


def _read(file: Path) -> list[tuple[str, Any]]:
    """Name and content of each prompt: text or a list of token ids."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{file} is not UTF-8 (byte {error.start})") from None
    if file.suffix != ".json":
        return [(f"line {i}", line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{file} is not valid JSON ({error})") from None
    if not isinstance(data, list):
        raise RequestError(f"{file} holds a {type(data).__name__}; give a list of prompts")
    return [_entry(file, i, entry) for i, entry in enumerate(data)]


def _entry(file: Path, index: int, entry: Any) -> tuple[str, Any]:
    name = f"prompt {index}"
    if isinstance(entry, dict):
        name = str(entry.get("name", name))
        entry = entry.get("prompt")
    is_ids = isinstance(entry, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in entry)
    if not isinstance(entry, str) and not is_ids:
        raise RequestError(
            f"prompt {index} of {file} is neither a text, nor an object with a `prompt`, nor a list of token ids"
        )
    return name, entry


def num_tokens(prompts: Sequence[Prompt]) -> int:
    """Tokens of all prompts together."""
    return sum(len(prompt.token_ids) for prompt in prompts)
