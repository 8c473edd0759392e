"""The sampler against transformers' logits processors and torch's log_softmax, and by the frequencies of its draws."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwench.errors import NumericalError, RequestError
from qwench.runtime.sampling.row_choices import UNDECIDED, choose
from qwench.runtime.sampling.sampler import TokenSampler, log_probabilities
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.targets.cpu import _native

VOCAB = 1000
PROMPT = np.array([3, 5, 5, 900], np.int32)


def logits(seed: int, vocab_size: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(vocab_size).astype(np.float32) * 3


def make(prompt: np.ndarray = PROMPT, ends: tuple[int, ...] = (), **params: Any) -> TokenSampler:
    return TokenSampler(SamplingParams(**params), prompt, 0, frozenset(ends))


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1},
        {"top_k": 2.5}, {"min_p": 2}, {"repetition_penalty": 0}, {"max_tokens": 0}, {"n": 0}, {"logprobs": -1},
        {"seed": "a"}, {"stop": ""}, {"stop": ["a", 3]}, {"stop_token_ids": [-1]}, {"logit_bias": {-1: 0.0}},
        {"logit_bias": {1: float("inf")}}, {"min_tokens": -1}, {"min_tokens": 5, "max_tokens": 4}, {"n": True},
        {"presence_penalty": float("inf")}, {"stop": 5}, {"logit_bias": [1]}, {"stop_token_ids": 5},
        {"prompt_lookup_num_tokens": -1}, {"prompt_lookup_num_tokens": None},
    ],
)  # fmt: skip
def test_impossible_parameters(bad: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(bad))):
        SamplingParams(**bad)


def test_greedy_takes_the_lowest_of_equals() -> None:
    row = np.zeros(VOCAB, np.float32)
    row[[40, 7, 300]] = 2
    assert make(temperature=0).sample(row)[0] == 7


def allowed(row: np.ndarray, **params: Any) -> set[int]:
    """Every token that 250 different seeds draw."""
    return {make(seed=seed, **params).sample(row.copy())[0] for seed in range(250)}


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 1}, {"top_k": 5}, {"top_p": 0.5}, {"top_p": 0.9}, {"top_p": 0.01}, {"min_p": 0.2}, {"min_p": 1.0},
        {"top_k": 6, "top_p": 0.7}, {"top_p": 0.8, "min_p": 0.3}, {"top_k": 8, "top_p": 0.9, "min_p": 0.1},
        {"temperature": 0.5, "top_p": 0.9}, {"temperature": 2.5, "top_k": 4, "min_p": 0.5},
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", [0, 1])
def test_filters_keep_what_transformers_keeps(params: dict[str, Any], seed: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as theirs

    row = logits(seed, 24)
    x = torch.from_numpy(row.copy())[None] / params.get("temperature", 1.0)
    for name, warper in (
        ("top_k", theirs.TopKLogitsWarper), ("top_p", theirs.TopPLogitsWarper), ("min_p", theirs.MinPLogitsWarper)
    ):  # fmt: skip
        if name in params:
            x = warper(params[name])(None, x)
    probabilities = torch.softmax(x[0], 0).numpy()
    expected = set(np.flatnonzero(probabilities).tolist())
    drawn = allowed(row, **params)
    assert drawn <= expected
    assert {int(i) for i in np.flatnonzero(probabilities > 0.05)} <= drawn


@pytest.mark.parametrize("seed", range(3))
def test_penalties_as_transformers(seed: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as theirs

    sampler = make(temperature=0, repetition_penalty=1.3)
    history = PROMPT.tolist()
    for step in range(12):
        row = logits(seed * 100 + step)
        expected = theirs.RepetitionPenaltyLogitsProcessor(1.3)(
            torch.tensor([history]), torch.from_numpy(row.copy())[None]
        )[0]
        token, _ = sampler.sample(row)
        np.testing.assert_array_equal(row, expected.numpy())
        assert token == int(expected.argmax())
        history.append(token)


def test_presence_and_frequency_count_the_answer_only() -> None:
    sampler = make(temperature=0, presence_penalty=0.5, frequency_penalty=0.25)
    row = np.zeros(VOCAB, np.float32)
    row[[3, 10]] = 1, 10  # 3 is in the prompt, and stays as it is
    for count in range(4):
        seen = row.copy()
        assert sampler.sample(seen)[0] == 10
        assert seen[10] == np.float32(10 - (0.5 + 0.25 * count if count else 0))
        assert seen[3] == 1


def test_many_different_tokens_with_penalties() -> None:
    """The history grows past its first arrays and still counts right."""
    sampler = make(temperature=0, frequency_penalty=1.0)
    for i in range(300):
        row = np.zeros(VOCAB, np.float32)
        row[i] = 50
        assert sampler.sample(row)[0] == i
    row = np.zeros(VOCAB, np.float32)
    sampler.sample(row)
    assert (row[:300] == -1).all() and (row[300:] == 0).all()


def test_bias_and_min_tokens() -> None:
    row = logits(0)
    best = int(row.argmax())
    assert make(temperature=0, logit_bias={best: -100, 77: 100}).sample(row.copy())[0] == 77
    sampler = make(temperature=0, ends=(best,), min_tokens=2)
    tokens = [sampler.sample(row.copy())[0] for _ in range(3)]
    assert best not in tokens[:2] and tokens[2] == best


@pytest.mark.parametrize("processed", [False, True])
def test_logprobs_are_torchs_of_the_raw_logits(processed: bool) -> None:
    torch = pytest.importorskip("torch")
    row = logits(1, 151_936)
    expected = torch.log_softmax(torch.from_numpy(row).double(), 0).numpy()
    extra = {"repetition_penalty": 2.0, "temperature": 0.3} if processed else {"temperature": 0}
    token, found = make(logprobs=5, seed=1, **extra).sample(row.copy())
    assert found is not None
    assert found.logprob == pytest.approx(expected[token], abs=2e-6)
    order = np.argsort(-expected, kind="stable")[:5]
    assert [i for i, _ in found.top] == order.tolist()
    np.testing.assert_allclose([x for _, x in found.top], expected[order], atol=2e-6)


@given(seed=st.integers(0, 2**32), size=st.sampled_from([5, 127, 2000, 5003]), k=st.integers(1, 9), ties=st.booleans())
def test_the_largest(seed: int, size: int, k: int, ties: bool) -> None:
    row = logits(seed, size)
    if ties:
        row = np.round(row)
    k = min(k, size)
    assert _native.Draws().largest(row, k) == np.argsort(-row, kind="stable")[:k].tolist()


@given(seed=st.integers(0, 2**32), size=st.sampled_from([1, 7, 255, 257, 5003, 151_936]))
def test_sums_of_weights_are_numpys(seed: int, size: int) -> None:
    weights = np.exp(logits(seed, size))
    sums = np.add.reduceat(weights, np.arange(0, size, 256))
    assert _native.sum_of_weights(weights) == sums.sum(dtype=np.float64)


@given(seed=st.integers(0, 2**32), repetition=st.sampled_from([1.0, 1.05, 0.7, 1e30]), size=st.integers(0, 300))
def test_penalties_are_numpys(seed: int, repetition: float, size: int) -> None:
    rng, row = np.random.default_rng(seed), logits(seed, 400)
    ids, counts = rng.permutation(400)[:size], rng.integers(0, 4, size).astype(np.float32)
    presence, frequency = (float(x) for x in rng.standard_normal(2).astype(np.float32))
    x, expected = row[ids], row.copy()
    x = np.where(x < 0, x * np.float32(repetition), x / np.float32(repetition)) if repetition != 1 else x
    expected[ids] = x - np.float32(frequency) * counts - np.float32(presence) * (counts > 0)
    _native.penalize(row, ids, counts, repetition, presence, frequency)
    np.testing.assert_array_equal(row, expected)


def test_group_maxima() -> None:
    rows = logits(1, 3 * 150).reshape(3, 150)
    rows[1, 70], rows[2, 149] = np.inf, np.nan
    maxima = np.empty((3, 3), np.float32)
    _native.group_maxima(rows, maxima)
    expected = np.array([[row[i : i + 64].max() for i in (0, 64, 128)] for row in rows])
    expected[1, 1] = np.nan
    np.testing.assert_array_equal(maxima, expected)


@given(
    seed=st.integers(0, 2**32), size=st.sampled_from([5, 64, 2000, 5003]), ties=st.booleans(),
    params=st.sampled_from(
        [{"temperature": 0}, {"top_k": 1}, {"top_k": 3}, {"top_k": 9, "top_p": 0.7}, {"top_k": 70}, {}, {"min_p": 0.1}]
    ),
    bad=st.sampled_from([None, np.nan, np.inf, -np.inf]),
)  # fmt: skip
def test_maxima_of_groups_change_nothing(
    seed: int, size: int, ties: bool, params: dict[str, Any], bad: float | None
) -> None:  # fmt: skip
    """And with them no more than the top groups is looked at; the others are of another row, or -inf beside a NaN."""
    row = np.round(logits(seed, size)) if ties else logits(seed, size)
    if bad is not None:
        row[seed % size] = bad
    maxima = np.array([row[i : i + 64].max() for i in range(0, size, 64)], np.float32)
    maxima[~np.isfinite(maxima)] = np.nan
    results, count = [], make(**params).top_groups
    lowest = np.sort(maxima)[-count] if 0 < count < len(maxima) else -np.inf
    unseen = np.repeat(maxima < lowest, 64)[:size]
    partial = np.where(unseen, -np.inf if np.isnan(maxima).any() else 99, row).astype(np.float32)
    for values, known in ((row, None), (row, maxima), (partial, maxima)):
        try:
            results.append(make(seed=seed, **params).sample(values.copy(), known)[0])
        except NumericalError as error:
            results.append(str(error))
    assert results[0] == results[1] == results[2]
    assert isinstance(results[0], str) == (bad is not None and bad != -np.inf)


def test_how_many_groups_are_looked_at() -> None:
    assert make(temperature=0).top_groups == make(top_k=1).top_groups == 1
    assert make(top_k=20, top_p=0.8).top_groups == 20
    everything: list[dict[str, Any]] = [
        {}, {"top_p": 0.8}, {"temperature": 0, "logprobs": 0}, {"temperature": 0, "repetition_penalty": 1.05},
        {"top_k": 20, "logit_bias": {3: 1.0}}, {"top_k": 20, "min_tokens": 2},
    ]  # fmt: skip
    assert [make(**params).top_groups for params in everything] == [0] * len(everything)


def test_logprobs_of_equals_go_by_id() -> None:
    row = np.zeros(300, np.float32)
    assert [i for i, _ in log_probabilities(row, 0.0, 5, 4).top] == [0, 1, 2, 3]
    assert len(log_probabilities(row, 0.0, 5, 1000).top) == 300


@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"top_k": 40, "temperature": 0.7}, {"min_p": 0.05}])
def test_frequencies(params: dict[str, Any]) -> None:
    """Pearson's chi-squared of 4000 draws against the filtered softmax; 5 standard deviations allowed."""
    row = logits(2, 500)
    temperature = params.get("temperature", 1.0)
    p = np.exp((row - row.max()).astype(np.float64) / temperature)
    order = np.argsort(-p)
    if "top_k" in params:
        p[order[params["top_k"] :]] = 0
    if "top_p" in params:
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= params["top_p"] * p.sum()]] = 0
    p[p < params.get("min_p", 0) * p.max()] = 0
    p /= p.sum()
    sampler, count = make(seed=9, **params), 4000
    drawn = np.bincount([sampler.sample(row)[0] for _ in range(count)], minlength=500)
    assert drawn[p == 0].sum() == 0
    common = p * count >= 5
    expected = np.append(p[common], p[~common].sum()) * count
    observed = np.append(drawn[common], drawn[~common].sum())
    keep = expected > 0
    chi2 = ((observed - expected)[keep] ** 2 / expected[keep]).sum()
    assert chi2 < keep.sum() + 5 * np.sqrt(2 * keep.sum())


def test_draws_depend_on_seed_sample_and_position_only() -> None:
    rows = [logits(i) for i in range(6)]

    def draw(seed: int, index: int, start: int = 0) -> list[int]:
        sampler = TokenSampler(SamplingParams(seed=seed), PROMPT, index, frozenset())
        sampler.num_sampled = start
        return [sampler.sample(row.copy())[0] for row in rows[start:]]

    assert draw(1, 0) == draw(1, 0)
    assert draw(1, 0, 3) == draw(1, 0)[3:]
    assert len({tuple(draw(seed, index)) for seed in (1, 2, -1) for index in (0, 1)}) == 6


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("params", [{"temperature": 0}, {}, {"top_k": 3}, {"frequency_penalty": 0.5}])
def test_numerical_error(bad: float, params: dict[str, Any]) -> None:
    row = logits(0)
    row[500] = bad
    if bad == -np.inf:
        row[:] = bad
    with pytest.raises(NumericalError):
        make(**params).sample(row)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(
    ("params", "weaker"),
    [
        ({"repetition_penalty": 5e-324}, {"repetition_penalty": 1e-25}),
        ({"repetition_penalty": 1e300}, {"repetition_penalty": 1e25}),
        ({"presence_penalty": 1e300, "frequency_penalty": -1e300}, {"presence_penalty": 0, "frequency_penalty": 0}),
        ({"presence_penalty": -1e300}, {"presence_penalty": -1e25}),
        ({"logit_bias": {5: 1e300, 6: -1e300}}, {"logit_bias": {5: 1e25, 6: -1e25}}),
    ],
)  # fmt: skip
def test_penalties_too_strong_for_fp32(params: dict[str, Any], weaker: dict[str, Any], temperature: float) -> None:
    rest = {"temperature": temperature, "top_p": 0.9, "top_k": 20, "seed": 1}
    ours, theirs = make(**params, **rest), make(**weaker, **rest)
    assert [ours.sample(logits(i))[0] for i in range(9)] == [theirs.sample(logits(i))[0] for i in range(9)]


def test_masked_tokens_are_never_drawn() -> None:
    row = np.full(VOCAB, -np.inf, np.float32)
    row[[5, 999]] = 1.0
    assert allowed(row) == allowed(row, top_p=0.99) == allowed(row, top_k=10) == {5, 999}


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([0.0, 1e-6, 0.01, 1.0, 100.0]),
    top_k=st.sampled_from([0, 1, 3, 5000]),
    top_p=st.sampled_from([1e-9, 0.3, 0.999999, 1.0]),
    min_p=st.sampled_from([0.0, 0.5, 1.0]),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 1e4, 1e37]),
)
def test_any_parameters_give_a_token(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float, scale: float
) -> None:
    row = logits(seed, 2000) * np.float32(scale)
    best = set(np.flatnonzero(row == row.max()).tolist())
    sampler = make(seed=seed, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, logprobs=1)
    token, _ = sampler.sample(row.copy())
    assert 0 <= token < 2000
    if temperature == 0 or top_k == 1:
        assert token in best
    elif min_p == 1:  # so little below the best that its weight rounds to the same
        assert row.max() - row[token] <= 1e-7 * temperature


def test_all_rows_at_once_are_the_samplers_own() -> None:
    """Drawn with penalties and bias, too. A greedy row with them, or where an end may not come yet, is left to the
    sampler, as it was."""
    wishes: list[dict[str, Any]] = [
        {"temperature": 0}, {"seed": 1}, {"seed": 2, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},
        {"temperature": 0, "presence_penalty": 1.5, "frequency_penalty": -0.5}, {"seed": 3, "min_p": 0.1},
        {"seed": 4, "logit_bias": {7: 9.5, 8: -3.0}, "repetition_penalty": 1e30, "logprobs": 3},
        {"seed": 5, "min_tokens": 3, "repetition_penalty": 1.2}, {"temperature": 0, "logprobs": 0},
    ]  # fmt: skip
    alone, together = ([make(ends=(5,), **wish) for wish in wishes] for _ in range(2))
    requests: Any = [(SimpleNamespace(sampler=sampler), 0, 1) for sampler in together]
    for step in range(5):
        rows = np.stack([logits(100 * step + i) for i in range(len(wishes))])
        maxima = np.empty((len(rows), -(-VOCAB // 64)), np.float32)
        _native.group_maxima(rows, maxima)
        before = rows.copy()
        chosen = choose(rows, maxima, len(rows), requests)
        np.testing.assert_array_equal(rows, before)
        assert [i for i, token in enumerate(chosen) if token == UNDECIDED] == ([3, 6] if step < 3 else [3])
        for i, (one, other, token) in enumerate(zip(alone, together, chosen)):
            expected, logprobs = one.sample(rows[i].copy())
            assert expected is not None and token in (expected, UNDECIDED)
            other.take(expected)
            assert other.logprobs(rows[i], maxima[i], expected) == logprobs
