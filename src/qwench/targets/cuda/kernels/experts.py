"""Mixtures of experts: which experts a token has, which tokens an expert has, and products with an expert's matrix.

Nothing here waits for the host. A grid depends on how many tokens there are and not on what they chose: there are as
many tiles as the worst choice takes, and those that nobody needs end at once, before they read a matrix. A token's row
for its i-th expert is row `token * TOP_K + i` of everything, so that only products know how rows are sorted.
"""

import triton
import triton.language as tl

from qwench.targets.cuda.kernels.product import float_tile, group_tile
from qwench.targets.cuda.kernels.rows import load_sum


@triton.jit
def route(
    partial, positions, routes, partial_rows, PARTIAL_WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, HAS_SHARED: tl.constexpr, NORMALIZES: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """routes [tokens, WIDTH] fp32: the TOP_K experts with the largest scores, in order, of equal ones the first; their
    weights, by softmax; then the shared expert's, by sigmoid. Tokens that only fill up a batch have NUM_EXPERTS, which
    is none. A NaN among the scores makes all weights NaN."""
    row = tl.program_id(0)
    experts = tl.arange(0, BLOCK)
    is_expert = experts < NUM_EXPERTS
    scores = load_sum(partial, row, experts, experts < NUM_EXPERTS + HAS_SHARED, partial_rows, PARTIAL_WIDTH, SPLITS)
    comparable = tl.where(is_expert & (scores == scores), scores, -float("inf"))
    is_left = is_expert
    for _ in range(TOP_K):
        best = tl.max(tl.where(is_left, comparable, -float("inf")), axis=0)
        first = tl.min(tl.where(is_left & (comparable == best), experts, NUM_EXPERTS), axis=0)
        is_left = is_left & (experts != first)
    is_chosen = is_expert & (is_left == 0)
    powers = tl.where(is_expert, tl.exp(scores - tl.max(comparable, axis=0)), 0.0)
    total = tl.sum(tl.where(is_chosen, powers, 0.0) if NORMALIZES else powers, axis=0)
    total += tl.sum(tl.where(is_expert & (scores != scores), scores, 0.0), axis=0)
    start = routes + row.to(tl.int64) * WIDTH
    place = start + tl.cumsum(is_chosen.to(tl.int32), axis=0) - 1
    numbers = tl.where(tl.load(positions + row) < 0, NUM_EXPERTS, experts)
    tl.store(place, numbers.to(tl.float32), mask=is_chosen)
    tl.store(place + TOP_K, tl.div_rn(powers, total), mask=is_chosen)
    if HAS_SHARED:
        weights = tl.div_rn(1.0, 1.0 + tl.exp(-scores))
        tl.store(start + 2 * TOP_K + experts - NUM_EXPERTS, weights, mask=experts == NUM_EXPERTS)


@triton.jit
def sort_by_expert(routes, order, starts, num_rows, TOP_K: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """order: the rows of the first expert, then those of the second, and so on, each in order; those of expert e begin
    at starts[e] and end at starts[e + 1]. starts[0] is 0 already. A program looks through all rows for one expert's."""
    expert = tl.program_id(0)
    place = 0
    for first in range(0, num_rows, BLOCK):
        place += tl.sum((_chosen(routes, first, num_rows, TOP_K, WIDTH, BLOCK) < expert).to(tl.int32), axis=0)
    for first in range(0, num_rows, BLOCK):
        is_its = (_chosen(routes, first, num_rows, TOP_K, WIDTH, BLOCK) == expert).to(tl.int32)
        tl.store(order + place + tl.cumsum(is_its, axis=0) - 1, first + tl.arange(0, BLOCK), mask=is_its != 0)
        place += tl.sum(is_its, axis=0)
    tl.store(starts + expert + 1, place)


@triton.jit
def _chosen(routes, first, num_rows, TOP_K: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The experts of BLOCK rows; of those beyond the last a number that is no expert's."""
    rows = first + tl.arange(0, BLOCK)
    place = routes + (rows // TOP_K).to(tl.int64) * WIDTH + rows % TOP_K
    return tl.load(place, mask=rows < num_rows, other=1e6).to(tl.int32)


@triton.jit
def tile_of_expert(starts, tile, NUM_EXPERTS: tl.constexpr, MOST_EXPERTS: tl.constexpr, BLOCK_T: tl.constexpr):
    """Whose the tile is, NUM_EXPERTS or more if it is nobody's, and which places of `order` it has: [first, last)."""
    experts = tl.arange(0, MOST_EXPERTS)
    is_expert = experts < NUM_EXPERTS
    start = tl.load(starts + experts, mask=is_expert, other=0)
    end = tl.load(starts + experts + 1, mask=is_expert, other=0)
    tiles = (end - start + BLOCK_T - 1) // BLOCK_T
    tiles_until = tl.cumsum(tiles, axis=0)
    expert = tl.sum((tiles_until <= tile).to(tl.int32), axis=0)
    is_it = experts == expert
    within = tile - tl.sum(tl.where(is_it, tiles_until - tiles, 0), axis=0)
    first = tl.sum(tl.where(is_it, start, 0), axis=0) + within * BLOCK_T
    return expert, first, tl.sum(tl.where(is_it, end, 0), axis=0)


@triton.jit
def expert_float_product(
    weight, x, out, order, starts, num_rows, out_rows, ROWS_OF_X: tl.constexpr, NUM_EXPERTS: tl.constexpr,
    MOST_EXPERTS: tl.constexpr, N_PAD: tl.constexpr, K_PAD: tl.constexpr, X_PAD: tl.constexpr, K_SPLIT: tl.constexpr,
    SPLITS: tl.constexpr, FOLD: tl.constexpr, PARTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """As float_product, of a stack of matrices [NUM_EXPERTS, N_PAD, K_PAD]; row r of `out` is of row r // ROWS_OF_X of
    x."""
    expert, first, last = tile_of_expert(starts, tl.program_id(0), NUM_EXPERTS, MOST_EXPERTS, BLOCK_T)
    if expert >= NUM_EXPERTS:
        return
    places = first + tl.arange(0, BLOCK_T)
    targets = tl.load(order + places, mask=places < last, other=0)
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    weight += expert.to(tl.int64) * (N_PAD * K_PAD)
    total = float_tile(weight, x, rows, targets // ROWS_OF_X, num_rows, K_PAD, X_PAD, K_SPLIT, SPLITS, FOLD, PARTS,
                       BLOCK_N, BLOCK_T, BLOCK_K)  # fmt: skip
    _store_rows(total, out, rows, targets, places < last, out_rows, N_PAD, FOLD)


@triton.jit
def expert_group_product(
    codes, scales, offsets, x, x_scales, x_sums, out, order, starts, num_rows, out_rows, ROWS_OF_X: tl.constexpr,
    NUM_EXPERTS: tl.constexpr, MOST_EXPERTS: tl.constexpr, N_PAD: tl.constexpr, K_PAD: tl.constexpr,
    X_PAD: tl.constexpr, K_SPLIT: tl.constexpr, SPLITS: tl.constexpr, FOLD: tl.constexpr, PARTS: tl.constexpr,
    GROUP: tl.constexpr, IS_INT4: tl.constexpr, DISTANCE: tl.constexpr, BIAS: tl.constexpr, HAS_OFFSETS: tl.constexpr,
    X_CODES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """As group_product, of stacks of codes, scales and offsets, whose first dimension are the experts."""
    expert, first, last = tile_of_expert(starts, tl.program_id(0), NUM_EXPERTS, MOST_EXPERTS, BLOCK_T)
    if expert >= NUM_EXPERTS:
        return
    places = first + tl.arange(0, BLOCK_T)
    targets = tl.load(order + places, mask=places < last, other=0)
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    codes += expert.to(tl.int64) * (N_PAD * K_PAD // 2 if IS_INT4 else N_PAD * K_PAD)
    of_groups = expert.to(tl.int64) * (K_PAD // GROUP * N_PAD)
    total = group_tile(codes, scales + of_groups, offsets + of_groups, x, x_scales, x_sums, rows, targets // ROWS_OF_X,
                       num_rows, N_PAD, K_PAD, X_PAD, K_SPLIT, SPLITS, FOLD, PARTS, GROUP, IS_INT4, DISTANCE, BIAS,
                       HAS_OFFSETS, X_CODES, BLOCK_N, BLOCK_T)  # fmt: skip
    _store_rows(total, out, rows, targets, places < last, out_rows, N_PAD, FOLD)


@triton.jit
def _store_rows(total, out, rows, targets, is_inside, out_rows, N_PAD: tl.constexpr, FOLD: tl.constexpr):
    split = 0 if FOLD else tl.program_id(2)
    place = (split * out_rows + targets).to(tl.int64)[None, :] * N_PAD + rows[:, None]
    tl.store(out + place, total, mask=is_inside[None, :])
