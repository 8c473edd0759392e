"""Metrics of fidelity against NumPy's own functions, torch where it is installed, and values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qwench.evaluate.metrics import (
    kl_divergence,
    log_softmax,
    pearson,
    relative_error,
    token_nll,
    top1_agrees,
    top5_agrees,
    top_tokens,
)


def random_logits(seed: int, rows: int = 20, vocab: int = 50) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((rows, vocab)).astype(np.float32) * 4
    return truth + rng.standard_normal((rows, vocab)).astype(np.float32) * 0.3, truth


def test_pearson_is_numpys() -> None:
    ours, truth = random_logits(0)
    expected = [np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1] for a, b in zip(ours, truth)]
    np.testing.assert_allclose(pearson(ours, truth), expected, rtol=1e-13)


def test_pearson_by_hand() -> None:
    assert pearson(np.array([[1.0, 2.0, 3.0]]), np.array([[10.0, 20.0, 30.0]]))[0] == pytest.approx(1, abs=1e-15)
    assert pearson(np.array([[3.0, 2.0, 1.0]]), np.array([[1.0, 2.0, 3.0]]))[0] == pytest.approx(-1, abs=1e-15)
    # a = (-1, 0, 1), b = (-1, 1, 0) less their means: sum(ab) = 1, sum(a^2) = sum(b^2) = 2.
    assert pearson(np.array([[0.0, 1.0, 2.0]]), np.array([[0.0, 2.0, 1.0]]))[0] == pytest.approx(0.5)


def test_pearson_of_constant_rows() -> None:
    same, other, ramp = np.full((1, 4), 0.1), np.full((1, 4), 0.3), np.arange(4.0)[None]
    assert pearson(same, same)[0] == 1
    assert pearson(same, other)[0] == 0
    assert pearson(np.zeros((1, 4)), ramp)[0] == 0


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_broken_rows_are_nan(broken: float) -> None:
    ours = np.array([[1.0, broken, 2.0], [1.0, 2.0, 3.0]])
    truth = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    assert np.isnan(pearson(ours, truth)).tolist() == [True, False]


def test_pearson_sees_what_fp32_would_not() -> None:
    truth = np.random.default_rng(1).standard_normal((1, 1000)).astype(np.float32)
    assert 1e-15 < 1 - pearson(truth * np.float32(1) + np.float32(1e-6) * truth[:, ::-1], truth)[0] < 1e-10


def test_relative_error_by_hand() -> None:
    ours, truth = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 0.0], [2.0, 0.0]] * 2)
    truth[2:] = [[0.0, 0.0], [3.0, 4.0]]
    expected = [math.inf, 0.5, 0.0, math.hypot(2, 3) / 5]
    np.testing.assert_allclose(relative_error(ours, truth), expected)


def test_kl_by_hand() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): KL(p || q) = (ln 2 + ln 2/3) / 2; the other way round it is another number.
    truth, ours = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    assert kl_divergence(ours, truth)[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert kl_divergence(truth, ours)[0] == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert kl_divergence(truth + 100, truth)[0] == 0


def test_kl_and_nll_are_torchs() -> None:
    torch = pytest.importorskip("torch")
    ours, truth = random_logits(2)
    q, p = (torch.log_softmax(torch.from_numpy(x).double(), dim=1) for x in (ours, truth))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(dim=1)
    np.testing.assert_allclose(kl_divergence(ours, truth), expected.numpy(), rtol=1e-9)
    np.testing.assert_allclose(log_softmax(ours), q.numpy(), rtol=1e-12)
    targets = np.arange(20)
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(ours).double(), torch.arange(20), reduction="none")
    np.testing.assert_allclose(token_nll(ours, targets), loss.numpy(), rtol=1e-12)


def test_agreement_by_hand() -> None:
    truth = np.array([[9.0, 8, 7, 6, 5, 4, 3]] * 3)
    ours = np.array([[9.0, 1, 1, 1, 1, 1, 1], [1.0, 1, 1, 1, 9, 1, 1], [1.0, 1, 1, 1, 1, 9, 1]])
    assert top1_agrees(ours, truth).tolist() == [True, False, False]
    assert top5_agrees(ours, truth).tolist() == [True, True, False]


def test_top_tokens_are_those_of_a_stable_sort() -> None:
    rng = np.random.default_rng(3)
    logits = rng.integers(0, 6, (50, 30)).astype(np.float32)  # ties everywhere
    expected = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(top_tokens(logits, 5), expected)
    assert top_tokens(np.array([[1.0, 3.0, 2.0]]), 5).tolist() == [[1, 2, 0]]
