"""The book test: 512 tokens of a text as the prompt, then 511 predictions compared with stored ones of the original.

At each of positions 512 to 1,022 the model has read the book's own tokens up to there (teacher-forced), and predicts
the next. top-1: its likeliest token is the original's; top-5: it is among the original's five likeliest. The stored
predictions make the test possible where neither the checkpoint nor transformers is. Called by `qwench eval` and
`benchmarks.quality`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwench.errors import ConfigError
from qwench.evaluate.metrics import Int64, top_tokens
from qwench.evaluate.perplexity import LogitRows
from qwench.targets.target import Int32

FORMAT = "qwench-book-1"
NUM_PROMPT, NUM_COMPARED = 512, 511
NUM_TOKENS = NUM_PROMPT + NUM_COMPARED  # position 1,022 is the last that predicts


@dataclass(frozen=True)
class Book:
    """token_ids: [1023] int32. top5: [511, 5] int64, the original's likeliest tokens after positions 512 to 1,022.
    made_by: what computed them, and from what."""

    token_ids: Int32
    top5: Int64
    made_by: str


@dataclass(frozen=True)
class Agreement:
    """Shares of the predictions, 0 to 1."""

    top1: float
    top5: float


def make_book(rows: LogitRows, token_ids: Int32, made_by: str) -> Book:
    """The predictions of an original on the beginning of a text. Raises ConfigError if the text is too short."""
    if len(token_ids) < NUM_TOKENS:
        raise ConfigError(f"the text has {len(token_ids)} tokens; the book test needs {NUM_TOKENS}")
    ids = token_ids[:NUM_TOKENS].astype(np.int32)
    return Book(ids, _predictions(rows, ids, 5), made_by)


def compare(rows: LogitRows, book: Book) -> Agreement:
    """How often a model predicts what the book's original does."""
    ours = _predictions(rows, book.token_ids, 1)
    return Agreement(float((ours[:, 0] == book.top5[:, 0]).mean()), float((ours == book.top5).any(axis=1).mean()))


def _predictions(rows: LogitRows, token_ids: Int32, count: int) -> Int64:
    """[511, count]: the likeliest tokens after each of the last 511 positions."""
    blocks = [top_tokens(block, count) for _, block in rows(token_ids, NUM_PROMPT)]
    return np.concatenate(blocks)


def save_book(book: Book, path: Path) -> None:
    data = {
        "format": FORMAT,
        "made_by": book.made_by,
        "token_ids": book.token_ids.tolist(),
        "top5": book.top5.tolist(),
    }
    path.write_text(json.dumps(data, separators=(",", ":")) + "\n", encoding="utf-8")


def load_book(path: Path, vocab_size: int) -> Book:
    """Raises ConfigError when the file is no book, or one of another vocabulary."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}, not {FORMAT!r}")
        ids, top5 = np.array(data["token_ids"], np.int64), np.array(data["top5"], np.int64)
        if ids.shape != (NUM_TOKENS,) or top5.shape != (NUM_COMPARED, 5):
            raise ValueError(f"it holds {ids.shape} tokens and {top5.shape} predictions")
        made_by = str(data["made_by"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ConfigError(f"{path} is not a book that `qwench eval --write-book` wrote ({error})") from None
    if min(ids.min(), top5.min()) < 0 or max(ids.max(), top5.max()) >= vocab_size:
        raise ConfigError(f"{path} has tokens outside the model's vocabulary of {vocab_size}; it is another model's")
    return Book(ids.astype(np.int32), top5, made_by)
