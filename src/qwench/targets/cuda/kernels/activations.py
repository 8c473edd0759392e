"""A row of fp32 values -> what a product multiplies: bf16 or int8 parts, as the activation's format says.

bf16 in one part; fp32 as three bf16 parts, whose sum is the value to the last bit; int8 codes in one part; int16 codes
as two, 128 * high + low. A part is to a product what one more token would be.
"""

import triton
import triton.language as tl

ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: what is added to it is rounded to a whole number, halves to even
NO_MAGNITUDE = tl.constexpr(1e-30)  # as in formats.py


@triton.jit
def store_activation(
    x, row, first, out, scales, sums, num_rows, K_PAD: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr,
    PARTS: tl.constexpr, GROUP: tl.constexpr, HAS_SUMS: tl.constexpr,
):  # fmt: skip
    """Writes values [BLOCK] of columns `first` and on of a row; zeros beyond the row's width.

    KIND: plain, floats or codes. out: [PARTS, num_rows, K_PAD]. scales, sums: [K_PAD / GROUP, num_rows] fp32, the scale
    of a group's codes and the sum of its values, which matrices with offsets need.
    """
    columns = first + tl.arange(0, BLOCK)
    place = row.to(tl.int64) * K_PAD + columns
    part_size = num_rows.to(tl.int64) * K_PAD
    is_inside = columns < K_PAD
    if KIND == "plain":
        tl.store(out + place, x, mask=is_inside)
    elif KIND == "floats":
        _store_floats(x, out + place, part_size, is_inside, PARTS)
        if HAS_SUMS:
            _store_of_groups(sums, tl.sum(tl.reshape(x, [BLOCK // GROUP, GROUP]), axis=1), row, first, num_rows,
                             K_PAD, BLOCK, GROUP)  # fmt: skip
    else:
        codes, scale = quantize(tl.reshape(x, [BLOCK // GROUP, GROUP]), PARTS)
        _store_of_groups(scales, scale, row, first, num_rows, K_PAD, BLOCK, GROUP)
        if HAS_SUMS:
            _store_of_groups(sums, tl.sum(codes, axis=1).to(tl.float32) * scale, row, first, num_rows, K_PAD, BLOCK,
                             GROUP)  # fmt: skip
        _store_codes(tl.reshape(codes, [BLOCK]), out + place, part_size, is_inside, PARTS)


@triton.jit
def quantize(groups, PARTS: tl.constexpr):
    """[n, GROUP] fp32 -> int32 codes [n, GROUP] and scales [n], as `quantize_activation` of formats.py; a group with a
    NaN or an infinity has the scale NaN."""
    step, inverse = steps(tl.max(tl.abs(groups), axis=1), PARTS)
    return round_codes(groups * inverse[:, None]), step + tl.sum(groups * 0.0, axis=1)


@triton.jit
def steps(amax, PARTS: tl.constexpr):
    """Of groups with these largest magnitudes: the value of a code, and its inverse; 0 for groups that are zeros."""
    largest = 127.0 if PARTS == 1 else 16319.0
    is_zero = amax <= NO_MAGNITUDE
    return amax * (1.0 / largest), tl.where(is_zero, 0.0, tl.div_rn(largest, tl.where(is_zero, 1.0, amax)))


@triton.jit
def round_codes(x):
    return ((x + ROUNDER) - ROUNDER).to(tl.int32)


@triton.jit
def _store_floats(x, place, part_size, is_inside, PARTS: tl.constexpr):
    rest = x
    for part in tl.static_range(PARTS):
        rounded = rest.to(tl.bfloat16)
        tl.store(place + part * part_size, rounded, mask=is_inside)
        rest = rest - rounded.to(tl.float32)


@triton.jit
def _store_codes(codes, place, part_size, is_inside, PARTS: tl.constexpr):
    if PARTS == 1:
        tl.store(place, codes.to(tl.int8), mask=is_inside)
    else:
        high = (codes + 64) >> 7
        tl.store(place, high.to(tl.int8), mask=is_inside)
        tl.store(place + part_size, (codes - high * 128).to(tl.int8), mask=is_inside)


@triton.jit
def _store_of_groups(out, values, row, first, num_rows, K_PAD: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    group = first // GROUP + tl.arange(0, BLOCK // GROUP)
    tl.store(out + group.to(tl.int64) * num_rows + row, values, mask=group < K_PAD // GROUP)
