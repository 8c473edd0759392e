"""Products of activations with matrices: out[token, n] = sum over k of weight[n, k] * x[token, k].

The matrix is the M side of every tensor-core product and tokens are its N side, padded. So one token and a thousand
take the same instruction along the same K: a tile of tokens, wide or narrow, decides which columns an instruction has
and not how a column is summed. K is cut into SPLITS by the matrix's shape alone; each is summed from zero and added in
order, by programs of their own (FOLD false: few tokens leave processors idle) or by one (FOLD true).
"""

import triton
import triton.language as tl


@triton.jit
def float_product(
    weight, x, out, num_rows, out_rows, N_PAD: tl.constexpr, K_PAD: tl.constexpr, X_PAD: tl.constexpr,
    K_SPLIT: tl.constexpr, SPLITS: tl.constexpr, FOLD: tl.constexpr, PARTS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """weight: [N_PAD, K_PAD] bf16; x: [PARTS, num_rows, X_PAD] bf16; out: [1 or SPLITS, out_rows, N_PAD] fp32.

    Grid: tiles of tokens, tiles of the matrix's rows, splits or 1. Rows of x beyond the last token may hold anything.
    """
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = float_tile(weight, x, rows, tokens, num_rows, K_PAD, X_PAD, K_SPLIT, SPLITS, FOLD, PARTS, BLOCK_N, BLOCK_T,
                       BLOCK_K)  # fmt: skip
    _store_tile(total, out, rows, tokens, out_rows, N_PAD, FOLD)


@triton.jit
def float_tile(
    weight, x, rows, tokens, num_rows, K_PAD: tl.constexpr, X_PAD: tl.constexpr, K_SPLIT: tl.constexpr,
    SPLITS: tl.constexpr, FOLD: tl.constexpr, PARTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The products of these rows of a matrix with these of x, [BLOCK_N, BLOCK_T] fp32."""
    ks = tl.arange(0, BLOCK_K)
    weights = weight + rows.to(tl.int64)[:, None] * K_PAD + ks[None, :]
    values = x + tokens.to(tl.int64)[None, :] * X_PAD + ks[:, None]
    part_size = num_rows.to(tl.int64) * X_PAD
    total = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    first = 0 if FOLD else tl.program_id(2)
    for split in range(first, first + (SPLITS if FOLD else 1)):
        sums = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
        for k in range(split * K_SPLIT, min((split + 1) * K_SPLIT, K_PAD), BLOCK_K):
            w = tl.load(weights + k)
            for part in tl.static_range(PARTS):
                sums = tl.dot(w, tl.load(values + part * part_size + k), sums)
        total += sums
    return total


@triton.jit
def group_product(
    codes, scales, offsets, x, x_scales, x_sums, out, num_rows, out_rows, N_PAD: tl.constexpr, K_PAD: tl.constexpr,
    X_PAD: tl.constexpr, K_SPLIT: tl.constexpr, SPLITS: tl.constexpr, FOLD: tl.constexpr, PARTS: tl.constexpr,
    GROUP: tl.constexpr, IS_INT4: tl.constexpr, DISTANCE: tl.constexpr, BIAS: tl.constexpr, HAS_OFFSETS: tl.constexpr,
    X_CODES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """codes: [N_PAD, K_PAD] int8, or [N_PAD, K_PAD / 2] bytes of two (weights.py); scales, offsets: [groups, N_PAD].

    x: [PARTS, num_rows, X_PAD], codes with x_scales [groups, num_rows], whose sums over a group are exact, or bf16.
    """
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = group_tile(codes, scales, offsets, x, x_scales, x_sums, rows, tokens, num_rows, N_PAD, K_PAD, X_PAD,
                       K_SPLIT, SPLITS, FOLD, PARTS, GROUP, IS_INT4, DISTANCE, BIAS, HAS_OFFSETS, X_CODES, BLOCK_N,
                       BLOCK_T)  # fmt: skip
    _store_tile(total, out, rows, tokens, out_rows, N_PAD, FOLD)


@triton.jit
def group_tile(
    codes, scales, offsets, x, x_scales, x_sums, rows, tokens, num_rows, N_PAD: tl.constexpr, K_PAD: tl.constexpr,
    X_PAD: tl.constexpr, K_SPLIT: tl.constexpr, SPLITS: tl.constexpr, FOLD: tl.constexpr, PARTS: tl.constexpr,
    GROUP: tl.constexpr, IS_INT4: tl.constexpr, DISTANCE: tl.constexpr, BIAS: tl.constexpr, HAS_OFFSETS: tl.constexpr,
    X_CODES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """As float_tile, of codes."""
    total = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    first = 0 if FOLD else tl.program_id(2)
    for split in range(first, first + (SPLITS if FOLD else 1)):
        sums = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
        for k in range(split * K_SPLIT, min((split + 1) * K_SPLIT, K_PAD), 2 * DISTANCE if IS_INT4 else GROUP):
            if IS_INT4:
                both = _load_codes(codes, rows, k // 2, K_PAD // 2, DISTANCE)
                low, high = (both & 15) - BIAS, ((both >> 4) & 15) - BIAS
                if 2 * DISTANCE == GROUP:
                    dot = _dot_codes(low, x, tokens, k, num_rows, X_PAD, DISTANCE, PARTS, X_CODES)
                    dot += _dot_codes(high, x, tokens, k + DISTANCE, num_rows, X_PAD, DISTANCE, PARTS, X_CODES)
                else:  # two groups of 32
                    dot = _dot_codes(low, x, tokens, k, num_rows, X_PAD, DISTANCE, PARTS, X_CODES)
                    sums = _add_group(sums, dot, k // GROUP, rows, tokens, scales, offsets, x_scales, x_sums, num_rows,
                                      N_PAD, HAS_OFFSETS, X_CODES)  # fmt: skip
                    dot = _dot_codes(high, x, tokens, k + DISTANCE, num_rows, X_PAD, DISTANCE, PARTS, X_CODES)
                group = (k + 2 * DISTANCE) // GROUP - 1
            else:
                w = _load_codes(codes, rows, k, K_PAD, GROUP)
                dot = _dot_codes(w, x, tokens, k, num_rows, X_PAD, GROUP, PARTS, X_CODES)
                group = k // GROUP
            sums = _add_group(sums, dot, group, rows, tokens, scales, offsets, x_scales, x_sums, num_rows, N_PAD,
                              HAS_OFFSETS, X_CODES)  # fmt: skip
        total += sums
    return total


@triton.jit
def _load_codes(codes, rows, first, ROW: tl.constexpr, COUNT: tl.constexpr):
    return tl.load(codes + rows.to(tl.int64)[:, None] * ROW + first + tl.arange(0, COUNT)[None, :])


@triton.jit
def _dot_codes(
    w, x, tokens, k, num_rows, X_PAD: tl.constexpr, COUNT: tl.constexpr, PARTS: tl.constexpr, X_CODES: tl.constexpr
):
    """The product over COUNT values of K: [BLOCK_N, BLOCK_T] int32 for codes, fp32 for bf16 parts."""
    place = x + tokens.to(tl.int64)[None, :] * X_PAD + k + tl.arange(0, COUNT)[:, None]
    part_size = num_rows.to(tl.int64) * X_PAD
    if X_CODES:
        dot = _dot_int8(w, tl.load(place), COUNT)
        if PARTS == 2:
            dot = dot * 128 + _dot_int8(w, tl.load(place + part_size), COUNT)
    else:
        dot = tl.dot(w.to(tl.bfloat16), tl.load(place), out_dtype=tl.float32)
        for part in tl.static_range(1, PARTS):
            dot = tl.dot(w.to(tl.bfloat16), tl.load(place + part * part_size), dot)
    return dot


@triton.jit
def _dot_int8(w, x, COUNT: tl.constexpr):
    """Exact. The int8 instruction takes 32 values of K; 16 of them are exact as bf16, too."""
    if COUNT < 32:
        return tl.dot(w.to(tl.bfloat16), x.to(tl.bfloat16), out_dtype=tl.float32).to(tl.int32)
    else:
        return tl.dot(w.to(tl.int8), x, out_dtype=tl.int32)


@triton.jit
def _add_group(
    sums, dot, group, rows, tokens, scales, offsets, x_scales, x_sums, num_rows, N_PAD: tl.constexpr,
    HAS_OFFSETS: tl.constexpr, X_CODES: tl.constexpr,
):  # fmt: skip
    """sums + dot * scale of x * scale of w, and + the sum of x * the offset of w."""
    of_weight, of_x = group * N_PAD + rows, group * num_rows + tokens
    scaled = dot.to(tl.float32)
    if X_CODES:
        scaled = scaled * tl.load(x_scales + of_x)[None, :]
    sums += scaled * tl.load(scales + of_weight).to(tl.float32)[:, None]
    if HAS_OFFSETS:
        sums += tl.load(x_sums + of_x)[None, :] * tl.load(offsets + of_weight)[:, None]
    return sums


@triton.jit
def _store_tile(total, out, rows, tokens, out_rows, N_PAD: tl.constexpr, FOLD: tl.constexpr):
    split = 0 if FOLD else tl.program_id(2)
    place = (split * out_rows + tokens).to(tl.int64)[None, :] * N_PAD + rows[:, None]
    tl.store(out + place, total)
