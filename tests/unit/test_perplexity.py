"""Perplexity and the book test against models whose every probability is known."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qwench.errors import ConfigError, NumericalError
from qwench.evaluate.book import NUM_TOKENS, compare, load_book, make_book, save_book
from qwench.evaluate.perplexity import perplexity, sliding_windows

VOCAB = 12


class Bigram:
    """Logits of the next token depend on the last one alone; given in blocks of any size."""

    def __init__(self, seed: int, block: int = 1000) -> None:
        self.table = np.random.default_rng(seed).standard_normal((VOCAB, VOCAB)).astype(np.float32) * 2
        self.block, self.read = block, 0

    def rows(self, ids: np.ndarray, first: int) -> Iterator[tuple[int, np.ndarray]]:
        self.read += len(ids)
        for at in range(first, len(ids), self.block):
            yield at, self.table[ids[at : at + self.block]]


def random_ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, count).astype(np.int32)


@pytest.mark.parametrize(
    ("tokens", "window", "stride"), [(2, 2, 1), (10, 10, 5), (11, 10, 5), (100, 16, 3), (99, 64, 63)]
)
def test_every_token_but_the_first_is_scored_once(tokens: int, window: int, stride: int) -> None:
    windows = sliding_windows(tokens, window, stride)
    scored = [t for w in windows for t in range(w.first_scored, w.end)]
    assert scored == list(range(1, tokens))
    assert all(w.end - w.begin <= window for w in windows)
    # The text before a scored token, but for those of the first window.
    assert all(w.first_scored - w.begin >= window - stride for w in windows[1:])


@pytest.mark.parametrize("block", [1000, 7])
@pytest.mark.parametrize(("window", "stride"), [(300, 100), (50, 49), (16, 1)])
def test_perplexity_of_a_bigram_model(window: int, stride: int, block: int) -> None:
    """What a window leaves out doesn't matter to it, so every window gives the same, computed here token by token."""
    ids, model = random_ids(200), Bigram(1, block)
    total = 0.0
    for last, token in itertools.pairwise(ids):
        weights = [math.exp(x) for x in model.table[last].tolist()]
        total -= math.log(weights[token] / sum(weights))
    found = perplexity(model.rows, ids, window, stride)
    assert found.num_scored == 199
    assert found.value == pytest.approx(math.exp(total / 199), rel=1e-6)


def test_a_uniform_model_has_the_vocabularys_perplexity() -> None:
    model = Bigram(0)
    model.table[:] = 3
    assert perplexity(model.rows, random_ids(50), 10, 5).value == pytest.approx(VOCAB)


def test_context_counts() -> None:
    """A model that knows the text by heart, but only from its fifth token on in each window."""

    def rows(ids: np.ndarray, first: int) -> Iterator[tuple[int, np.ndarray]]:
        logits = np.zeros((len(ids), VOCAB), np.float32)
        logits[np.arange(4, len(ids) - 1), ids[5:]] = 100
        yield first, logits[first:]

    ids = random_ids(100)
    assert perplexity(rows, ids, 20, 15).nll == pytest.approx(4 * math.log(VOCAB) / 99)
    assert perplexity(rows, ids, 20, 18).nll > perplexity(rows, ids, 20, 15).nll


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (10, 0), (10, 10), (10, 11)])
def test_impossible_windows(window: int, stride: int) -> None:
    with pytest.raises(ConfigError, match="can't be used"):
        sliding_windows(100, window, stride)


def test_nan_is_an_error() -> None:
    model = Bigram(0)
    model.table[3, 3] = np.nan
    with pytest.raises(NumericalError):
        perplexity(model.rows, random_ids(100), 10, 5)


def test_book_against_sorting(tmp_path: Path) -> None:
    ids, original, other = random_ids(1500), Bigram(1), Bigram(2)
    made = make_book(original.rows, ids, "a bigram")
    assert compare(original.rows, made).top1 == 1
    truth = np.argsort(-original.table[ids[512:NUM_TOKENS]], axis=1)
    ours = other.table[ids[512:NUM_TOKENS]].argmax(axis=1)
    assert len(ours) == 511
    found = compare(Bigram(2, block=100).rows, made)
    assert found.top1 == np.mean(ours == truth[:, 0])
    assert found.top5 == np.mean([token in row[:5] for token, row in zip(ours, truth)])
    save_book(made, tmp_path / "book.json")
    loaded = load_book(tmp_path / "book.json", VOCAB)
    assert loaded.made_by == "a bigram"
    np.testing.assert_array_equal(loaded.top5, made.top5)
    np.testing.assert_array_equal(loaded.token_ids, ids[:NUM_TOKENS])


def test_a_book_needs_its_tokens() -> None:
    with pytest.raises(ConfigError, match="needs 1023"):
        make_book(Bigram(0).rows, random_ids(1022), "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format"),
        ({"token_ids": [1, 2]}, "tokens"),
        ({"top5": [[1] * 5] * 510}, "predictions"),
        ({"top5": [[VOCAB] * 5] * 511}, "vocabulary of 12"),
        ({"token_ids": None}, "not a book"),
    ],
)
def test_bad_books(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "book.json"
    save_book(make_book(Bigram(1).rows, random_ids(1100), ""), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=message):
        load_book(path, VOCAB)


def test_a_book_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "book.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match="not a book"):
        load_book(path, VOCAB)
