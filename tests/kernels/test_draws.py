"""Tokens of rows of logits against the same choice written in NumPy, whose sums decide which one is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwench.runtime.sampling.draws import draw
from qwench.targets.cpu import _native
from qwench.targets.target import LOGIT_GROUP

CHUNK = 256
VOCABS = (1, 2, 5, 63, 64, 65, 300, 2048, 2049, 5000, 20_000)


def reference(row: np.ndarray, p: dict[str, Any], counter: int) -> int:
    """Sorts everything, and looks at everything."""
    ids = np.arange(len(row))
    if 0 < p["top_k"] < len(row):
        ids = np.flatnonzero(row >= np.sort(row)[-p["top_k"]])
    weights = np.exp((row[ids] - row.max()) / np.float32(p["temperature"]))
    if p["top_p"] < 1:
        goal = p["top_p"] * float(chunk_sums(weights).sum(dtype=np.float64))
        order = np.argsort(-weights, kind="stable")
        reached = np.cumsum(weights[order], dtype=np.float64)
        kept = np.sort(order[: int(np.searchsorted(reached, goal)) + 1])
        ids, weights = ids[kept], weights[kept]
    kept = np.flatnonzero(weights >= np.float32(p["min_p"]))
    ids, weights = ids[kept], weights[kept]
    bits = int(np.random.Philox(key=p["seed"] | p["sample"] << 64, counter=counter).random_raw())
    sums = np.cumsum(chunk_sums(weights), dtype=np.float64)
    goal = (bits >> 11) * 2.0**-53 * float(sums[-1])
    chunk = min(int(np.searchsorted(sums, goal, side="right")), len(sums) - 1)
    within = np.cumsum(weights[chunk * CHUNK : (chunk + 1) * CHUNK], dtype=np.float64)
    place = int(np.searchsorted(within, goal - (float(sums[chunk - 1]) if chunk else 0.0), side="right"))
    if place == len(within):
        place = int(np.searchsorted(within, within[-1]))
    return int(ids[chunk * CHUNK + place])


def chunk_sums(weights: np.ndarray) -> np.ndarray:
    return np.add.reduceat(weights, np.arange(0, len(weights), CHUNK))


def maxima_of(logits: np.ndarray) -> np.ndarray:
    rows, vocab_size = logits.shape
    padded = np.full((rows, -(-vocab_size // LOGIT_GROUP) * LOGIT_GROUP), -np.inf, np.float32)
    padded[:, :vocab_size] = logits
    return padded.reshape(rows, -1, LOGIT_GROUP).max(axis=2)


parameters = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([1e-30, 0.1, 0.7, 1.0, 1.3, 100.0]),
        "top_k": st.sampled_from([0, 0, 1, 5, 20, 50, 1000, 2**64 - 1]),
        "top_p": st.sampled_from([1.0, 1.0, 0.01, 0.3, 0.8, 0.95, 0.9999]),
        "min_p": st.sampled_from([0.0, 0.0, 0.01, 0.1, 1.0]),
        "seed": st.integers(0, 2**64 - 1),
        "sample": st.integers(0, 5),
    }
)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32), vocab_size=st.sampled_from(VOCABS),
    given_params=st.lists(parameters, min_size=1, max_size=4), spread=st.sampled_from([0.1, 1.0, 3.0, 10.0]),
    ties=st.booleans(), banned=st.booleans(), knows_maxima=st.booleans(),
    counter=st.sampled_from([0, 1, 1000, 2**64 - 1]), attempt=st.integers(0, 1),
)  # fmt: skip
def test_draws(
    seed: int, vocab_size: int, given_params: list[dict[str, Any]], spread: float, ties: bool, banned: bool,
    knows_maxima: bool, counter: int, attempt: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((len(given_params) + 1, vocab_size)).astype(np.float32) * np.float32(spread)
    if ties:
        logits = np.round(logits)
    if banned and vocab_size > 1:
        logits[:, rng.integers(vocab_size)] = -np.inf
    maxima = maxima_of(logits) if knows_maxima else None
    if maxima is not None:
        # As a target gives them: a group with an infinite logit has none.
        maxima[np.isinf(maxima_of(np.where(np.isinf(logits), np.inf, 0)))] = np.nan
    rows = rng.permutation(len(logits))[: len(given_params)].tolist()
    drawn = draw(
        logits, maxima, rows, [_native.Sampling(**p) for p in given_params], [counter] * len(rows), attempt
    )  # fmt: skip
    assert drawn == [reference(logits[r], p, counter | attempt << 64) for r, p in zip(rows, given_params, strict=True)]


@pytest.mark.parametrize("vocab_size", VOCABS)
def test_likeliest(vocab_size: int) -> None:
    logits = np.round(np.random.default_rng(0).standard_normal((50, vocab_size)) * 2).astype(np.float32)
    assert _native.likeliest(logits, maxima_of(logits), 40) == logits[:40].argmax(axis=1).tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_has_no_likeliest(bad: float) -> None:
    logits = np.zeros((3, 200), np.float32)
    maxima = maxima_of(logits)
    maxima[1] = bad if bad != np.inf else [0, 0, np.inf, 0]
    assert _native.likeliest(logits, maxima, 3) == [0, -1, 0]


def test_groups_below_the_top_ones_are_not_read() -> None:
    """A target may leave their values as they were, those of a last and smaller group too."""
    logits = np.random.default_rng(0).standard_normal((1, 2000)).astype(np.float32)
    logits[0, 1990:] -= 10
    maxima, stale = maxima_of(logits), logits.copy()
    top = set(np.argsort(-maxima[0])[:5].tolist())
    for group in set(range(maxima.shape[1])) - top:
        stale[0, group * LOGIT_GROUP : (group + 1) * LOGIT_GROUP] = 1e9
    params = {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "min_p": 0.0, "seed": 1, "sample": 0}
    count = 20
    drawn = draw(stale, maxima, [0] * count, [_native.Sampling(**params)] * count, list(range(count)))
    assert drawn == [reference(logits[0], params, counter) for counter in range(count)]


def test_infinite_logits_share_the_draw() -> None:
    """Penalties can overflow, and then the infinite ones alone are possible."""
    row = np.zeros((1, 3000), np.float32)
    row[0, [5, 2999]] = np.inf
    for params in ({"top_k": 0, "top_p": 1.0}, {"top_k": 7, "top_p": 0.9}):
        sampling = _native.Sampling(temperature=1.0, min_p=0.0, seed=3, sample=0, **params)
        assert set(draw(row, None, [0] * 50, [sampling] * 50, list(range(50)))) == {5, 2999}


def test_wrong_shapes_are_refused() -> None:
    logits, maxima = np.zeros((2, 128), np.float32), np.zeros((2, 2), np.float32)
    sampling = _native.Sampling(1.0, 0, 1.0, 0.0, 0, 0)
    draws = _native.Draws()
    for row, known in ((2, maxima), (0, maxima[:1]), (0, np.zeros((2, 3), np.float32))):
        with pytest.raises(ValueError):
            draws.gather(logits, known, [row], [sampling])
        with pytest.raises(ValueError):
            _native.likeliest(logits, known, row + 1)
    draws.gather(logits, maxima, [0], [sampling])
    with pytest.raises(ValueError, match="counter"):
        draws.draw([], 0)
    with pytest.raises(ValueError, match="temperature"):
        _native.Sampling(0.0, 0, 1.0, 0.0, 0, 0)
