"""GPTQ: quantises a matrix [N, K], given the second moments [K, K] of its inputs, to codes and scales.

Called by `calibrator.py`. For each row w of the matrix it minimises the error of the outputs over the calibration
inputs X,

    loss(q) = |X w - X q|^2 = (w - q) H (w - q)^T,    H = X^T X.

Columns are rounded one after the other, each compensating the rounding errors of those before it (GPTQ, Frantar et al.
2022, arXiv:2210.17323), in the form of QuIP (Chee et al. 2023, arXiv:2307.13304, where it is called LDLQ and shown to
be the same): with H = (U + I) D (U + I)^T, U strictly upper triangular, D diagonal,

    q_k = round(w_k + sum over j < k of (w_j - q_j) U_jk),

whose loss is the sum of D_k times the squared error of each rounding. Columns with large H_kk go first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwench.formats import INT4_CANDIDATES, Float32, Format, Int8, quantize_weight, reciprocal, round_to_bf16

DAMPING = 0.01  # of the mean of H's diagonal, added to it, as in GPTQ
BLOCK, STRIP = 128, 16  # columns between two products with all errors so far, and with those of the block
ROWS = 4096  # of the matrix at a time: bounds the memory that a large head takes


def quantize_for_inputs(weight: Float32, moments: Float32, fmt: Format) -> tuple[Int8, Float32]:
    """Like `formats.quantize_weight`, for inputs whose second moments are `moments` (H, up to a factor).

    weight: [N, K] fp32; moments: [K, K] fp32, symmetric. Returns codes [N, padded K] int8 and scales
    [N, padded K / group] fp32, which bf16 holds.
    """
    padding = fmt.padded_k(weight.shape[1]) - weight.shape[1]
    order = _order(np.pad(moments, ((0, padding), (0, padding))))
    codes, scales = [], []
    for first in range(0, len(weight), ROWS):
        rows = np.pad(weight[first : first + ROWS], ((0, 0), (0, padding)))
        scales.append(_choose_scales(rows, order.importance, fmt))
        codes.append(_round_columns(rows, scales[-1], order, fmt))
    return np.concatenate(codes), np.concatenate(scales)


@dataclass(frozen=True)
class _Order:
    """columns: [K], in the order in which they are rounded. feedback: U + I, [K, K] fp32, rows and columns in that
    order. importance: D, [K] fp32, as the matrix has its columns."""

    columns: npt.NDArray[np.intp]
    feedback: Float32
    importance: Float32


def _order(moments: Float32) -> _Order:
    diagonal = moments.diagonal()
    seen = diagonal > 0  # padding, and inputs that are always zero, would make H singular
    damping = DAMPING * float(diagonal[seen].mean()) if seen.any() else 1.0
    columns = np.argsort(-diagonal, kind="stable")
    damped = moments[np.ix_(columns, columns)].astype(np.float64) + damping * np.eye(len(moments))
    # Cholesky from the end: the lower factor of the reversed matrix, reversed, is the upper factor.
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    pivots = upper.diagonal()
    importance = np.empty(len(moments), np.float32)
    importance[columns] = pivots**2
    return _Order(columns, (upper / pivots).astype(np.float32), importance)


def _choose_scales(weight: Float32, importance: Float32, fmt: Format) -> Float32:
    """Scales [N, groups]. int4: the best of every third candidate of `formats`, by squared error weighted with the
    importance of each column."""
    if fmt.kind == "int8":
        return quantize_weight(weight, fmt)[1]
    groups = weight.reshape(len(weight), -1, fmt.group_size)
    matter = importance.reshape(1, -1, fmt.group_size)
    most, least = groups.max(axis=2), groups.min(axis=2)
    peak = np.where(most >= -least, most, least)
    unit = -reciprocal(peak)
    best_gain, best_scale = np.zeros_like(unit), np.zeros_like(unit)
    for candidate in INT4_CANDIDATES[::3]:
        codes = np.clip(np.rint(groups * (unit * candidate)[..., None]), *fmt.code_range)
        dot = np.einsum("ngk,ngk->ng", groups, weighted := codes * matter)
        norm = np.maximum(np.einsum("ngk,ngk->ng", codes, weighted), np.float32(1e-30))
        scale = round_to_bf16(dot / norm)
        gain = scale * (2 * dot - scale * norm)  # the weighted error is a constant less this
        better = gain > best_gain
        best_gain = np.where(better, gain, best_gain)
        best_scale = np.where(better, scale, best_scale)
    return best_scale


def _round_columns(weight: Float32, scales: Float32, order: _Order, fmt: Format) -> Int8:
    """Codes [N, K] for given scales; each column compensates the errors of those before it."""
    feedback = order.feedback
    columns = np.ascontiguousarray(weight.T[order.columns])  # [K, N]: a column of the matrix lies in one piece
    steps = np.ascontiguousarray(scales.T)[order.columns // fmt.group_size]
    inverse = reciprocal(steps)
    codes = np.empty(columns.shape, np.int8)
    errors = np.empty_like(columns)
    for block in range(0, len(columns), BLOCK):
        of_block = slice(block, block + BLOCK)
        targets = columns[of_block] + feedback[:block, of_block].T @ errors[:block]
        for strip in range(block, min(block + BLOCK, len(columns)), STRIP):
            of_strip = slice(strip, min(strip + STRIP, len(columns)))
            here = slice(of_strip.start - block, of_strip.stop - block)
            targets[here] += feedback[block:strip, of_strip].T @ errors[block:strip]
            for k in range(of_strip.start, of_strip.stop):
                code = np.clip(np.rint(targets[k - block] * inverse[k]), *fmt.code_range)
                codes[k] = code
                errors[k] = columns[k] - code * steps[k]
                targets[k - block + 1 : here.stop] += feedback[k, k + 1 : of_strip.stop, None] * errors[k]
    result = np.empty((weight.shape[1], len(weight)), np.int8)
    result[order.columns] = codes
    return np.ascontiguousarray(result.T)
