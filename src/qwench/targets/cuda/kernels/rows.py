"""Kernels that work on rows by themselves: embedding, taking rows, norm, residual sum, SiLU, and what logits end
with."""

import triton
import triton.language as tl

from qwench.targets.cuda.kernels.activations import store_activation


@triton.jit
def load_sum(partial, row, columns, is_inside, num_rows, WIDTH: tl.constexpr, SPLITS: tl.constexpr):
    """A product's row: the sums over its parts of K, [SPLITS, num_rows, WIDTH], added in order."""
    total = tl.zeros([columns.shape[0]], tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(partial + (split * num_rows + row).to(tl.int64) * WIDTH + columns, mask=is_inside, other=0.0)
    return total


@triton.jit
def add_weighted(
    onto, partial, weights, row, columns, is_inside, num_rows, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    COUNT: tl.constexpr, WEIGHTS_WIDTH: tl.constexpr,
):  # fmt: skip
    """A token's COUNT rows of a product, times its weights, one after another. weights: [rows, WEIGHTS_WIDTH] fp32."""
    for i in range(COUNT):
        y = load_sum(partial, row * COUNT + i, columns, is_inside, num_rows, WIDTH, SPLITS)
        onto += tl.load(weights + row.to(tl.int64) * WEIGHTS_WIDTH + i) * y
    return onto


@triton.jit
def embed(
    token_ids, embeddings, table, scales, offsets, out, n_pad, WIDTH: tl.constexpr, K_PAD: tl.constexpr,
    BLOCK: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr, DISTANCE: tl.constexpr, BIAS: tl.constexpr,
    HAS_OFFSETS: tl.constexpr,
):  # fmt: skip
    """Rows of the matrix `table` (weights.py), or of embeddings [n, WIDTH] fp32 for ids below 0."""
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = columns < WIDTH
    token = tl.load(token_ids + row)
    if token < 0:
        x = tl.load(embeddings + (-1 - token).to(tl.int64) * WIDTH + columns, mask=is_inside)
    else:
        start = token.to(tl.int64) * K_PAD
        if KIND == "bf16":
            x = tl.load(table + start + columns, mask=is_inside).to(tl.float32)
        else:
            if KIND == "int8":
                codes = tl.load(table + start + columns, mask=is_inside).to(tl.int32)
            else:
                unit, place = columns // (2 * DISTANCE), columns % (2 * DISTANCE)
                both = tl.load(table + start // 2 + unit * DISTANCE + place % DISTANCE, mask=is_inside).to(tl.int32)
                codes = tl.where(place < DISTANCE, both & 15, (both >> 4) & 15) - BIAS
            group = (columns // GROUP).to(tl.int64) * n_pad + token
            scale = tl.load(scales + group, mask=is_inside).to(tl.float32)
            if HAS_OFFSETS:
                x = tl.fma(codes.to(tl.float32), scale, tl.load(offsets + group, mask=is_inside))
            else:
                x = codes.to(tl.float32) * scale
    tl.store(out + row.to(tl.int64) * WIDTH + columns, x, mask=is_inside)


@triton.jit
def take_rows(x, rows, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    source = tl.load(rows + row).to(tl.int64)
    values = tl.load(x + source * WIDTH + columns, mask=columns < WIDTH)
    tl.store(out + row.to(tl.int64) * WIDTH + columns, values, mask=columns < WIDTH)


@triton.jit
def rms_norm(
    x, partial, weights, gain, order, out, scales, sums, eps, num_rows, partial_rows, WIDTH: tl.constexpr,
    PARTIAL_WIDTH: tl.constexpr, K_PAD: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
    WEIGHTED: tl.constexpr, WEIGHTS_WIDTH: tl.constexpr, HAS_NORM: tl.constexpr, HAS_ORDER: tl.constexpr,
    KIND: tl.constexpr, PARTS: tl.constexpr, GROUP: tl.constexpr, HAS_SUMS: tl.constexpr,
):  # fmt: skip
    """x += the sum of `partial`, if SPLITS says that there is one; out = x / rms(x) * gain, as an activation.

    x: [rows, WIDTH] fp32, one row a program. WEIGHTED: rows of `partial` that each has, with `weights`; 0: one without.
    """
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    is_inside = columns < WIDTH
    place = x + row.to(tl.int64) * WIDTH + columns
    values = tl.load(place, mask=is_inside, other=0.0)
    if SPLITS > 0:
        if WEIGHTED > 0:
            values = add_weighted(values, partial, weights, row, columns, is_inside, partial_rows, PARTIAL_WIDTH,
                                  SPLITS, WEIGHTED, WEIGHTS_WIDTH)  # fmt: skip
        else:
            values = load_sum(partial, row, columns, is_inside, partial_rows, PARTIAL_WIDTH, SPLITS) + values
        tl.store(place, values, mask=is_inside)
    if HAS_NORM:
        variance = tl.sum(values * values, axis=0) / WIDTH
        inverse = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))
        if HAS_ORDER:  # another thread wrote what this one reads
            tl.debug_barrier()
            columns_read = tl.load(order + columns, mask=is_inside, other=0)
            values = tl.load(x + row.to(tl.int64) * WIDTH + columns_read, mask=is_inside, other=0.0)
            factors = tl.load(gain + columns_read, mask=is_inside, other=0.0)
        else:
            factors = tl.load(gain + columns, mask=is_inside, other=0.0)
        store_activation(values * inverse * factors, row, 0, out, scales, sums, num_rows, K_PAD, BLOCK, KIND, PARTS,
                         GROUP, HAS_SUMS)  # fmt: skip


@triton.jit
def silu_mul(
    partial, out, scales, sums, num_rows, partial_rows, WIDTH: tl.constexpr, PARTIAL_WIDTH: tl.constexpr,
    K_PAD: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr, KIND: tl.constexpr, PARTS: tl.constexpr,
    GROUP: tl.constexpr, HAS_SUMS: tl.constexpr,
):  # fmt: skip
    """silu(gate) * up, as an activation; a row of the product has WIDTH gates and then as many ups."""
    row, first = tl.program_id(0), tl.program_id(1) * BLOCK
    columns = first + tl.arange(0, BLOCK)
    is_inside = columns < WIDTH
    gate = load_sum(partial, row, columns, is_inside, partial_rows, PARTIAL_WIDTH, SPLITS)
    up = load_sum(partial, row, columns + WIDTH, is_inside, partial_rows, PARTIAL_WIDTH, SPLITS)
    product = gate * tl.div_rn(1.0, 1.0 + tl.exp(-gate)) * up
    store_activation(product, row, first, out, scales, sums, num_rows, K_PAD, BLOCK, KIND, PARTS, GROUP, HAS_SUMS)


@triton.jit
def add_bias(
    partial, bias, out, partial_rows, WIDTH: tl.constexpr, OUT_WIDTH: tl.constexpr, PARTIAL_WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """A product's rows, WIDTH columns of [rows, OUT_WIDTH] fp32."""
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = columns < WIDTH
    values = load_sum(partial, row, columns, is_inside, partial_rows, PARTIAL_WIDTH, SPLITS)
    if HAS_BIAS:
        values += tl.load(bias + columns, mask=is_inside)
    tl.store(out + row.to(tl.int64) * OUT_WIDTH + columns, values, mask=is_inside)


@triton.jit
def group_maxima(
    logits, out, num_groups, out_width, WIDTH: tl.constexpr, LOGITS_WIDTH: tl.constexpr, GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest of every GROUP neighbours of WIDTH columns of [rows, LOGITS_WIDTH], NaN where one of them isn't
    finite: num_groups columns of out [rows, out_width]."""
    row = tl.program_id(0)
    groups = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    columns = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    is_inside = columns < WIDTH
    x = tl.load(logits + row.to(tl.int64) * LOGITS_WIDTH + columns, mask=is_inside, other=-float("inf"))
    maxima = tl.max(x, axis=1) + tl.sum(tl.where(is_inside, x, 0.0) * 0.0, axis=1)
    tl.store(out + row.to(tl.int64) * out_width + groups, maxima, mask=groups < num_groups)


@triton.jit
def take_best(
    logits, maxima, out, num_groups, maxima_width, out_width, WIDTH: tl.constexpr, LOGITS_WIDTH: tl.constexpr,
    GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The neighbours with the first of the largest logits: GROUP columns of out [rows, out_width]."""
    row = tl.program_id(0)
    groups = tl.arange(0, BLOCK)
    largest = tl.load(maxima + row.to(tl.int64) * maxima_width + groups, mask=groups < num_groups, other=-float("inf"))
    columns = tl.argmax(largest, axis=0) * GROUP + tl.arange(0, GROUP)
    x = tl.load(logits + row.to(tl.int64) * LOGITS_WIDTH + columns, mask=columns < WIDTH, other=-float("inf"))
    tl.store(out + row.to(tl.int64) * out_width + tl.arange(0, GROUP), x)
