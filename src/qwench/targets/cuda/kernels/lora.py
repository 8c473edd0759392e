"""What low-rank adapters add to a product: x is shrunk to the ranks of its row's adapter, A x, and these are expanded
to the product's width, B (A x).

Rows with the same adapter go together, in tiles (adapter_tiles.py); as in product.py matrices are the M side and rows
the N side, so neighbours don't show in a row's bits. Where an adapter's matrices lie is read from tables on the device,
so a recorded step serves whatever is loaded later.
"""

import triton
import triton.language as tl


@triton.jit
def shrink(
    x, x_scales, a_places, ranks, rows, tiles, out, num_rows, out_rows, max_ranks, X_PAD: tl.constexpr,
    K_PAD: tl.constexpr, K_SPLIT: tl.constexpr, SOURCES: tl.constexpr, TABLE_WIDTH: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_K: tl.constexpr, X_CODES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """x: as a product's, in rows of X_PAD. a_places, ranks: [slots, TABLE_WIDTH], of matrices [ranks, K_PAD] bf16.
    rows: those of x, by adapter; tiles: [num_tiles, 3], an adapter's slot, and of `rows` the first and how many. out:
    [splits, SOURCES, max_ranks, out_rows] fp32, sums over parts of K, in the order of `rows`.

    Grid: tiles, sources times blocks of ranks, splits. BLOCK_K: a group of codes.
    """
    tile, source = tl.program_id(0), tl.program_id(1) % SOURCES
    first_rank, split = tl.program_id(1) // SOURCES * BLOCK_R, tl.program_id(2)
    entry = tl.load(tiles + 3 * tile) * TABLE_WIDTH + source
    first, count = tl.load(tiles + 3 * tile + 1), tl.load(tiles + 3 * tile + 2)
    if first_rank >= tl.load(ranks + entry):
        return
    place, tokens, ks = first_rank + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K)
    row = tl.load(rows + first + tokens, mask=tokens < count, other=0)
    matrix = tl.multiple_of(tl.load(a_places + entry).to(tl.pointer_type(tl.bfloat16)), 16)
    weights = matrix + place[:, None] * K_PAD + ks[None, :]
    values = x + row.to(tl.int64)[None, :] * X_PAD + ks[:, None]
    part_size = num_rows.to(tl.int64) * X_PAD
    sums = tl.zeros([BLOCK_R, BLOCK_T], tl.float32)
    for k in range(split * K_SPLIT, min((split + 1) * K_SPLIT, K_PAD), BLOCK_K):
        w = tl.load(weights + k)
        if X_CODES:
            dot = tl.dot(w, tl.load(values + k).to(tl.bfloat16), out_dtype=tl.float32)
            if PARTS == 2:
                dot = dot * 128 + tl.dot(w, tl.load(values + part_size + k).to(tl.bfloat16), out_dtype=tl.float32)
            sums += dot * tl.load(x_scales + k // BLOCK_K * num_rows + row)[None, :]
        else:
            for part in tl.static_range(PARTS):
                sums = tl.dot(w, tl.load(values + part * part_size + k), sums)
    place = ((split * SOURCES + source) * max_ranks + place).to(tl.int64)[:, None] * out_rows + first + tokens[None, :]
    tl.store(out + place, sums, mask=(tokens < count)[None, :])


@triton.jit
def expand(
    shrunk, b_places, ranks, factors, first_rows, rows, tiles, out, shrunk_rows, max_ranks, N_PAD: tl.constexpr,
    SOURCES: tl.constexpr, TABLE_WIDTH: tl.constexpr, SPLITS: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """shrunk: what `shrink` left. b_places, ranks, factors: [slots, TABLE_WIDTH], of matrices [height of the source,
    ranks] bf16, and what their products are multiplied by. first_rows: [SOURCES + 1], of each source in a product's
    row, and the end. out: [rows, N_PAD] fp32, zeros for rows without an adapter.

    Grid: tiles, blocks of the highest source, sources. Shrunk values are multiplied in three bf16 parts.
    """
    tile, source = tl.program_id(0), tl.program_id(2)
    columns, tokens = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_T)
    entry = tl.load(tiles + 3 * tile) * TABLE_WIDTH + source
    first, count = tl.load(tiles + 3 * tile + 1), tl.load(tiles + 3 * tile + 2)
    first_row = tl.load(first_rows + source)
    height = tl.load(first_rows + source + 1) - first_row
    if (count == 0) | (tl.program_id(1) * BLOCK_N >= height):
        return
    num_ranks, is_row, is_column = tl.load(ranks + entry), tokens < count, columns < height
    matrix = tl.multiple_of(tl.load(b_places + entry).to(tl.pointer_type(tl.bfloat16)), 16)
    factor = tl.load(factors + entry)
    sums = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for first_rank in range(0, num_ranks, BLOCK_R):
        place = first_rank + tl.arange(0, BLOCK_R)
        w = tl.load(matrix + columns.to(tl.int64)[:, None] * num_ranks + place[None, :], mask=is_column[:, None],
                    other=0.0)  # fmt: skip
        rest = tl.zeros([BLOCK_R, BLOCK_T], tl.float32)
        for split in tl.static_range(SPLITS):
            of_split = ((split * SOURCES + source) * max_ranks + place).to(tl.int64)[:, None] * shrunk_rows
            rest += tl.load(shrunk + of_split + first + tokens[None, :], mask=is_row[None, :], other=0.0)
        rest = rest * factor
        for _ in tl.static_range(3):
            part = rest.to(tl.bfloat16)
            sums = tl.dot(w, part, sums)
            rest = rest - part.to(tl.float32)
    row = tl.load(rows + first + tokens, mask=is_row, other=0)
    place = row.to(tl.int64)[None, :] * N_PAD + first_row + columns[:, None]
    tl.store(out + place, sums, mask=is_column[:, None] & is_row[None, :])
