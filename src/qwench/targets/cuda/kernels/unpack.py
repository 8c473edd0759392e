"""The artifact's panels of 64 columns -> a matrix row by row, once, when it is loaded (panels.py has the layout)."""

import triton
import triton.language as tl


@triton.jit
def unpack_bf16(
    packed, out, num_rows, HALF_ROWS: tl.constexpr, PAIRED: tl.constexpr, PANEL_K: tl.constexpr, K_PAD: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """packed: [panels, PANEL_K / 2, 64, 2] bf16, a pair's first value last; out: [rows, K_PAD] bf16."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = (tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K))[None, :]
    panel, column = panel_of(rows, HALF_ROWS, PAIRED)
    place = panel.to(tl.int64)[:, None] * (64 * PANEL_K) + ks // 2 * 128 + column[:, None] * 2 + 1 - ks % 2
    is_inside = (rows < num_rows)[:, None] & (ks < PANEL_K)
    values = tl.load(packed + place, mask=is_inside, other=0.0)
    tl.store(out + rows.to(tl.int64)[:, None] * K_PAD + ks, values, mask=(rows < num_rows)[:, None] & (ks < K_PAD))


@triton.jit
def unpack_codes(
    packed, out, num_rows, HALF_ROWS: tl.constexpr, PAIRED: tl.constexpr, IS_INT4: tl.constexpr, GROUP: tl.constexpr,
    NUM_GROUPS: tl.constexpr, PANEL_BYTES: tl.constexpr, GROUP_BYTES: tl.constexpr, HEADER_BYTES: tl.constexpr,
    BLOCK_BYTES: tl.constexpr, GROUPS_PER_BLOCK: tl.constexpr, DISTANCE: tl.constexpr, K_PAD: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out: int8 codes [rows, K_PAD]; of int4 bytes [rows, K_PAD / 2], of which byte DISTANCE * i + j has the code of
    k = 2 * DISTANCE * i + j in its low half and that of k + DISTANCE in its high half, as the panels store it."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    at = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    panel, column = panel_of(rows, HALF_ROWS, PAIRED)
    base = panel.to(tl.int64) * PANEL_BYTES + column * 4
    is_row = (rows < num_rows)[:, None]
    if IS_INT4:
        k = at // DISTANCE * (2 * DISTANCE) + at % DISTANCE
        low = _int4(packed, base, k, is_row, GROUP, NUM_GROUPS, GROUP_BYTES, HEADER_BYTES, BLOCK_BYTES,
                    GROUPS_PER_BLOCK)  # fmt: skip
        high = _int4(packed, base, k + DISTANCE, is_row, GROUP, NUM_GROUPS, GROUP_BYTES, HEADER_BYTES, BLOCK_BYTES,
                     GROUPS_PER_BLOCK)  # fmt: skip
        codes = low | (high << 4)
        width: tl.constexpr = K_PAD // 2
    else:
        group = at // GROUP
        start = _group_start(group, GROUP_BYTES, HEADER_BYTES, BLOCK_BYTES, GROUPS_PER_BLOCK)
        place = base[:, None] + (start + at % GROUP // 4 * 256 + at % 4)[None, :]
        raw = tl.load(packed + place, mask=is_row & (group < NUM_GROUPS)[None, :], other=128)
        codes = raw.to(tl.int32) - 128
        width: tl.constexpr = K_PAD
    tl.store(out + rows.to(tl.int64)[:, None] * width + at[None, :], codes.to(tl.int8),
             mask=is_row & (at < width)[None, :])  # fmt: skip


@triton.jit
def panel_of(rows, HALF_ROWS: tl.constexpr, PAIRED: tl.constexpr):
    """Of paired matrices a panel holds 32 rows of the first and 32 of the second."""
    if PAIRED:
        within = rows % HALF_ROWS
        return within // 32, rows // HALF_ROWS * 32 + within % 32
    else:
        return rows // 64, rows % 64


@triton.jit
def _group_start(
    group, GROUP_BYTES: tl.constexpr, HEADER_BYTES: tl.constexpr, BLOCK_BYTES: tl.constexpr,
    GROUPS_PER_BLOCK: tl.constexpr,
):  # fmt: skip
    start = group * GROUP_BYTES + HEADER_BYTES
    if BLOCK_BYTES:
        start += (group // GROUPS_PER_BLOCK + 1) * BLOCK_BYTES
    return start


@triton.jit
def _int4(
    packed, base, k, is_row, GROUP: tl.constexpr, NUM_GROUPS: tl.constexpr, GROUP_BYTES: tl.constexpr,
    HEADER_BYTES: tl.constexpr, BLOCK_BYTES: tl.constexpr, GROUPS_PER_BLOCK: tl.constexpr,
):  # fmt: skip
    group, within = k // GROUP, k % GROUP
    start = _group_start(group, GROUP_BYTES, HEADER_BYTES, BLOCK_BYTES, GROUPS_PER_BLOCK)
    place = base[:, None] + (start + within // 8 * 256 + k % 4)[None, :]
    both = tl.load(packed + place, mask=is_row & (group < NUM_GROUPS)[None, :], other=0).to(tl.int32)
    return tl.where((k % 8 < 4)[None, :], both & 15, both >> 4)
