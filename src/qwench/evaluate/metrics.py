"""How close two models' numbers are: correlation, error, divergence and agreement, token by token, in NumPy.

Pure functions of arrays. Rows are tokens; `ours` is what is judged, `truth` what it is compared with, in that order.
Computed in float64, because 1 - PCC of a good model is below fp32's resolution. Called by `verify.py`,
`perplexity.py`, `book.py` and `benchmarks.quality`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


def pearson(ours: Rows, truth: Rows) -> Float64:
    """Pearson's correlation coefficient of each row: [rows, width] twice -> [rows].

    sum(a * b) / sqrt(sum(a^2) * sum(b^2)) with a and b less their means. Two equal rows correlate with 1, also where
    they are constant and the formula says 0 / 0; a constant row and another with 0; rows with NaN or infinity with NaN.
    """
    a, b = _float64(ours, truth)
    is_equal = (a == b).all(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
        scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
        result = (a * b).sum(axis=1) / np.where(scale == 0, 1, scale)
    return np.where(is_equal, 1.0, result)


def relative_error(ours: Rows, truth: Rows) -> Float64:
    """Euclidean length of the difference over that of the truth, of each row: [rows, width] twice -> [rows].

    0 / 0 is 0, anything else over 0 infinity.
    """
    a, b = _float64(ours, truth)
    error, size = np.linalg.norm(a - b, axis=1), np.linalg.norm(b, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error == 0, 0.0, error / size)


def log_softmax(logits: Rows) -> Float64:
    """log(exp(x) / sum(exp(x))) of each row: [rows, vocab] -> [rows, vocab]."""
    x = np.asarray(logits, np.float64)
    x = x - x.max(axis=1, keepdims=True)
    result: Float64 = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return result


def kl_divergence(ours: Rows, truth: Rows) -> Float64:
    """KL(truth || ours) = sum p (log p - log q) of each row's distributions, in nats: logits twice -> [rows]."""
    p, q = log_softmax(truth), log_softmax(ours)
    result: Float64 = np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0)  # rounding may fall below 0 by 1e-16
    return result


def top1_agrees(ours: Rows, truth: Rows) -> Bool:
    """Whether both models' likeliest token is the same, of each row: logits twice -> [rows]."""
    return np.asarray(ours.argmax(axis=1) == truth.argmax(axis=1))


def top5_agrees(ours: Rows, truth: Rows) -> Bool:
    """Whether our likeliest token is among the truth's five likeliest, of each row: logits twice -> [rows]."""
    return np.asarray((top_tokens(truth, 5) == ours.argmax(axis=1)[:, None]).any(axis=1))


def top_tokens(logits: Rows, count: int) -> Int64:
    """The `count` likeliest tokens of each row, likeliest first, ties by id: [rows, vocab] -> [rows, count]."""
    vocab_size = logits.shape[1]
    if vocab_size <= count:
        order: Int64 = np.argsort(-logits, axis=1, kind="stable")
        return order
    # All that reach the count-th largest value, so that ties at the edge are decided by id, not by the partition.
    edge = np.partition(logits, vocab_size - count, axis=1)[:, vocab_size - count]
    rows = []
    for row, least in zip(logits, edge, strict=True):
        candidates = np.flatnonzero(row >= least)
        rows.append(candidates[np.argsort(-row[candidates], kind="stable")][:count])
    return np.array(rows, np.int64).reshape(len(logits), count)


def token_nll(logits: Rows, targets: npt.NDArray[Any]) -> Float64:
    """-log p(target) of each row, in nats: logits [rows, vocab] and token ids [rows] -> [rows]."""
    x = np.asarray(logits, np.float64)
    peak = x.max(axis=1)
    log_sum = peak + np.log(np.exp(x - peak[:, None]).sum(axis=1))
    result: Float64 = log_sum - x[np.arange(len(x)), targets]
    return result


def _float64(ours: Rows, truth: Rows) -> tuple[Float64, Float64]:
    assert ours.shape == truth.shape and ours.ndim == 2, f"{ours.shape} and {truth.shape} are not the same rows"
    return np.asarray(ours, np.float64), np.asarray(truth, np.float64)
