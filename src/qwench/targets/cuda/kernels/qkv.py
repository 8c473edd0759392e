"""Queries, keys and values of a product: bias or norm of each head, rotation, and keys and values into the paged
cache."""

import triton
import triton.language as tl

from qwench.targets.cuda.kernels.activations import round_codes, steps


@triton.jit
def rope_write(
    partial, bias, q_gain, k_gain, rope_table, positions, token_seq, tables, q_out, cache, cache_scales, eps,
    partial_rows, table_width, key_place, value_place, key_scale_place, value_scale_place, block_stride, scale_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, ROW: tl.constexpr, HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, PARTIAL_WIDTH: tl.constexpr, SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_NORMS: tl.constexpr, IS_INT8: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK heads of one token a program: HEADS of q, then KV_HEADS of k, then as many of v.

    The first and the second half of a head are two vectors, which rotation combines. Where a token has position -1,
    nothing is kept. The cache's layout is `attend`'s; int8 keys are kept without their bias, [KV_HEADS * HEAD_DIM].
    """
    row, head = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    half: tl.constexpr = HEAD_DIM // 2
    columns = tl.arange(0, HALF)
    is_inside = (head < HEADS + 2 * KV_HEADS)[:, None] & (columns < half)[None, :]
    is_query, is_value = head < HEADS, head >= HEADS + KV_HEADS
    is_key, is_kept = (head >= HEADS) & (head < HEADS + KV_HEADS), head >= HEADS
    first = head[:, None] * HEAD_DIM + columns[None, :]
    x1, x2 = tl.zeros([BLOCK, HALF], tl.float32), tl.zeros([BLOCK, HALF], tl.float32)
    for split in tl.static_range(SPLITS):
        place = partial + (split * partial_rows + row).to(tl.int64) * PARTIAL_WIDTH + first
        x1 += tl.load(place, mask=is_inside, other=0.0)
        x2 += tl.load(place + half, mask=is_inside, other=0.0)
    if HAS_BIAS:
        b1 = tl.load(bias + first, mask=is_inside, other=0.0)
        b2 = tl.load(bias + first + half, mask=is_inside, other=0.0)
        x1, x2 = x1 + b1, x2 + b2
    if HAS_NORMS:
        variance = (tl.sum(x1 * x1, axis=1) + tl.sum(x2 * x2, axis=1)) / HEAD_DIM
        inverse = tl.where(is_value, 1.0, tl.div_rn(1.0, tl.sqrt_rn(variance + eps)))[:, None]
        x1 = x1 * inverse * _gains(q_gain, k_gain, columns, is_inside, is_query, is_key)
        x2 = x2 * inverse * _gains(q_gain + half, k_gain + half, columns, is_inside, is_query, is_key)
    position = tl.load(positions + row)
    angle = rope_table + tl.maximum(position, 0) * HEAD_DIM + columns
    turns = (head < HEADS + KV_HEADS)[:, None]
    cosine = tl.where(turns, tl.load(angle, mask=columns < half, other=0.0)[None, :], 1.0)
    sine = tl.where(turns, tl.load(angle + half, mask=columns < half, other=0.0)[None, :], 0.0)
    x1, x2 = x1 * cosine - x2 * sine, x2 * cosine + x1 * sine
    place = q_out + row.to(tl.int64) * HEADS * HEAD_DIM + first
    tl.store(place, x1, mask=is_inside & is_query[:, None])
    tl.store(place + half, x2, mask=is_inside & is_query[:, None])

    if IS_INT8 and HAS_BIAS:
        x1 -= tl.where(is_key[:, None], b1 * cosine - b2 * sine, 0.0)
        x2 -= tl.where(is_key[:, None], b2 * cosine + b1 * sine, 0.0)
    block = tl.load(tables + tl.load(token_seq + row) * table_width + tl.maximum(position, 0) // BLOCK_SIZE)
    slot = (head - HEADS) % KV_HEADS * BLOCK_SIZE + position % BLOCK_SIZE
    slot_place = block.to(tl.int64) * block_stride + slot * ROW + tl.where(is_value, value_place, key_place)
    place = cache + slot_place[:, None] + columns[None, :]
    is_stored = is_inside & is_kept[:, None] & (position >= 0)
    if IS_INT8:
        step, inverse = steps(tl.maximum(tl.max(tl.abs(x1), axis=1), tl.max(tl.abs(x2), axis=1)), 1)
        step += tl.sum(x1 * 0.0, axis=1) + tl.sum(x2 * 0.0, axis=1)  # NaN stays NaN
        of_scale = block.to(tl.int64) * scale_stride + slot + tl.where(is_value, value_scale_place, key_scale_place)
        is_head = is_kept & (head < HEADS + 2 * KV_HEADS) & (position >= 0)
        tl.store(cache_scales + of_scale, step, mask=is_head)
        x1, x2 = round_codes(x1 * inverse[:, None]), round_codes(x2 * inverse[:, None])
    tl.store(place, x1.to(cache.dtype.element_ty), mask=is_stored)
    tl.store(place + half, x2.to(cache.dtype.element_ty), mask=is_stored)


@triton.jit
def _gains(q_gain, k_gain, columns, is_inside, is_query, is_key):
    """[BLOCK, HALF]: of q's norm, of k's, and 1 for values."""
    of_query = tl.load(q_gain + columns[None, :], mask=is_inside & is_query[:, None], other=1.0)
    of_key = tl.load(k_gain + columns[None, :], mask=is_inside & is_key[:, None], other=1.0)
    return of_query * of_key
