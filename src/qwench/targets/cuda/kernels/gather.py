"""What ranks have gathered, as one row."""

import triton
import triton.language as tl

from qwench.targets.cuda.kernels.activations import store_activation


@triton.jit
def join_columns(
    gathered, spans, order, out, scales, sums, num_rows, gathered_rows, WIDTH: tl.constexpr, LOCAL_WIDTH: tl.constexpr,
    RANKS: tl.constexpr, HAS_ORDER: tl.constexpr, K_PAD: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr,
    PARTS: tl.constexpr, GROUP: tl.constexpr, HAS_SUMS: tl.constexpr,
):  # fmt: skip
    """gathered: [RANKS, gathered_rows, LOCAL_WIDTH] fp32; out: an activation, BLOCK columns of a row a program.

    spans: [RANKS, 2] int32, of each rank its first column of WIDTH, and where that lies among its own.
    """
    row, begin = tl.program_id(0), tl.program_id(1) * BLOCK
    columns = begin + tl.arange(0, BLOCK)
    is_inside = columns < WIDTH
    if HAS_ORDER:
        columns = tl.load(order + columns, mask=is_inside, other=0)
    rank, place = columns * 0, columns + tl.load(spans + 1)
    for other in tl.static_range(1, RANKS):
        first = tl.load(spans + 2 * other)
        is_other = columns >= first
        rank = tl.where(is_other, other, rank)
        place = tl.where(is_other, columns - first + tl.load(spans + 2 * other + 1), place)
    at = (rank * gathered_rows + row).to(tl.int64) * LOCAL_WIDTH + place
    x = tl.load(gathered + at, mask=is_inside, other=0.0)
    store_activation(x, row, begin, out, scales, sums, num_rows, K_PAD, BLOCK, KIND, PARTS, GROUP, HAS_SUMS)
