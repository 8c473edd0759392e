"""Paged attention over keys and values by block table, for prompts and for single tokens alike.

A program has up to BLOCK_Q rows: the query heads that share a kv head, of neighbouring tokens of one sequence.
Positions are cut into partitions at fixed places, and a partition into tiles of TILE keys. In a partition softmax runs
online from its first tile on; partitions are merged in order, by the program itself (SPLIT false) or by
`finish_attention` from what programs of their own have left (SPLIT true), with the same formula. A tile or partition
that a row doesn't see leaves its numbers as they are, so that a row's bits depend on its own sequence alone.
"""

import triton
import triton.language as tl

from qwench.targets.cuda.kernels.activations import store_activation

TILE = tl.constexpr(64)


@triton.jit
def attend(
    q, keys, values, key_scales, value_scales, rope_table, key_bias, tile_seq, tile_row, tile_len, query_start,
    seq_lens, tables, out, out_max, out_total, scale, table_width, num_slots, key_place, value_place,
    key_scale_place, value_scale_place, block_stride, scale_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, D_PAD: tl.constexpr, ROW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, PARTITION: tl.constexpr, WINDOW: tl.constexpr, CAUSAL: tl.constexpr,
    SPLIT: tl.constexpr, PARTS: tl.constexpr, IS_INT8: tl.constexpr, HAS_BIAS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of queries, kv heads, partitions or 1.

    q: [tokens, HEADS, HEAD_DIM] fp32, rotated. keys, values: the cache; position p of kv head h lies in block b =
    tables[seq, p / BLOCK_SIZE] at b * block_stride + place + (h * BLOCK_SIZE + p % BLOCK_SIZE) * ROW, its scale
    likewise without ROW. tile_row: a tile's first token; tile_len: how many it has. out: [tokens, num_slots, HEADS,
    HEAD_DIM] fp32, sums of values not yet divided by out_total; out_max, out_total: [tokens, num_slots, HEADS] fp32.
    PARTS: bf16 numbers that a query or a probability is split into; 0: keys and values are fp32.
    """
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    seq, first_row, count = tl.load(tile_seq + tile), tl.load(tile_row + tile), tl.load(tile_len + tile)
    length = tl.load(seq_lens + seq)
    first_position = length - tl.load(query_start + seq + 1) + first_row
    REP: tl.constexpr = HEADS // KV_HEADS
    token = tl.arange(0, BLOCK_Q) // REP
    head = kv_head * REP + tl.arange(0, BLOCK_Q) % REP
    is_row = token < count
    row = (first_row + token).to(tl.int64) * HEADS + head
    columns = tl.arange(0, D_PAD)
    is_query = is_row[:, None] & (columns < HEAD_DIM)[None, :]
    queries = tl.load(q + row[:, None] * HEAD_DIM + columns[None, :], mask=is_query, other=0.0)
    cosines, sines = _bias_terms(q, key_bias, row, is_row, kv_head, HEAD_DIM, HALF, BLOCK_Q, HAS_BIAS)

    end = first_position + count if CAUSAL else length
    begin = tl.maximum(first_position + 1 - WINDOW, 0) if WINDOW else first_position * 0
    first = tl.program_id(2) if SPLIT else begin // PARTITION
    last = tl.program_id(2) + 1 if SPLIT else (end + PARTITION - 1) // PARTITION
    if SPLIT:  # a partition that nobody here sees, and so nobody reads
        is_row = is_row & (last * PARTITION > begin) & (first * PARTITION < end)
    largest, total, sums = _nothing(BLOCK_Q, D_PAD)
    for partition in range(first, last):
        top, mass, acc = _nothing(BLOCK_Q, D_PAD)
        start = tl.maximum(partition * PARTITION, begin // TILE * TILE)
        for at in range(start, tl.minimum(partition * PARTITION + PARTITION, end), TILE):
            positions = at + tl.arange(0, TILE)
            is_key = positions < end
            block = tl.load(tables + seq * table_width + positions // BLOCK_SIZE, mask=is_key, other=0).to(tl.int64)
            slot = kv_head * BLOCK_SIZE + positions % BLOCK_SIZE
            is_value = is_key[:, None] & (columns < ROW)[None, :]
            place = (block * block_stride + slot * ROW)[:, None] + columns[None, :]
            k = tl.load(keys + key_place + place, mask=is_value, other=0.0)
            scores = _dot(queries, tl.trans(k), PARTS)
            if IS_INT8:
                of_scale = block * scale_stride + slot
                scores *= tl.load(key_scales + key_scale_place + of_scale, mask=is_key, other=0.0)[None, :]
            if HAS_BIAS:
                scores += _bias_scores(rope_table, cosines, sines, positions, is_key, HEAD_DIM, HALF)
            distance = (first_position + token)[:, None] - positions[None, :]
            seen = is_key[None, :] & is_row[:, None]
            if CAUSAL:
                seen = seen & (distance >= 0)
            if WINDOW:
                seen = seen & (distance < WINDOW)
            scores = tl.where(seen, scores * scale, -float("inf"))
            new = tl.maximum(top, tl.max(scores, axis=1))
            base = tl.where(new == -float("inf"), 0.0, new)
            p = tl.exp(scores - base[:, None])
            shrink = tl.exp(top - base)
            mass = mass * shrink + tl.sum(p, axis=1)
            v = tl.load(values + value_place + place, mask=is_value, other=0.0)
            if IS_INT8:
                p *= tl.load(value_scales + value_scale_place + of_scale, mask=is_key, other=0.0)[None, :]
            acc = acc * shrink[:, None] + _dot(p, v, PARTS)
            top = new
        largest, total, sums = merge(largest, total, sums, top, mass, acc)
    slot_out = (first_row + token) * num_slots + (tl.program_id(2) if SPLIT else 0)
    of_row = slot_out.to(tl.int64) * HEADS + head
    tl.store(out_max + of_row, largest, mask=is_row)
    tl.store(out_total + of_row, total, mask=is_row)
    tl.store(out + of_row[:, None] * HEAD_DIM + columns[None, :], sums, mask=is_query & is_row[:, None])


@triton.jit
def merge(largest, total, sums, top, mass, acc):
    """Two partial softmaxes as one, [rows], [rows] and [rows, D]. One that has seen nothing changes nothing."""
    new = tl.maximum(largest, top)
    base = tl.where(new == -float("inf"), 0.0, new)
    old_share, new_share = tl.exp(largest - base), tl.exp(top - base)
    return new, total * old_share + mass * new_share, sums * old_share[:, None] + acc * new_share[:, None]


@triton.jit
def _nothing(BLOCK_Q: tl.constexpr, D_PAD: tl.constexpr):
    top = tl.full([BLOCK_Q], -float("inf"), tl.float32)
    return top, tl.zeros([BLOCK_Q], tl.float32), tl.zeros([BLOCK_Q, D_PAD], tl.float32)


@triton.jit
def _dot(x, w, PARTS: tl.constexpr):
    """x fp32 times w: what bf16 holds (int8 codes, too), with x in PARTS bf16 numbers, or fp32 (PARTS 0)."""
    if PARTS == 0:
        return _dot_fp32(x, w)
    else:
        exact = w.to(tl.bfloat16)
        part = x.to(tl.bfloat16)
        result = tl.dot(part, exact)
        for _ in tl.static_range(1, PARTS):
            x = x - part.to(tl.float32)
            part = x.to(tl.bfloat16)
            result = tl.dot(part, exact, result)
        return result


@triton.jit
def _dot_fp32(x, y):
    """Both in three bf16 parts; of their nine products the three that are less than fp32's last bit are left out."""
    x1, y1 = x.to(tl.bfloat16), y.to(tl.bfloat16)
    x, y = x - x1.to(tl.float32), y - y1.to(tl.float32)
    x2, y2 = x.to(tl.bfloat16), y.to(tl.bfloat16)
    x3, y3 = (x - x2.to(tl.float32)).to(tl.bfloat16), (y - y2.to(tl.float32)).to(tl.bfloat16)
    result = tl.dot(x3, y1, tl.dot(x2, y2, tl.dot(x1, y3)))
    return tl.dot(x1, y1, tl.dot(x2, y1, tl.dot(x1, y2, result)))


@triton.jit
def _bias_terms(
    q, key_bias, row, is_row, kv_head, HEAD_DIM: tl.constexpr, HALF: tl.constexpr, BLOCK_Q: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """[BLOCK_Q, HALF] each: a query times the bias rotated to position p is a sum of cosines and sines of p; these are
    its coefficients."""
    columns = tl.arange(0, HALF)
    if HAS_BIAS:
        half: tl.constexpr = HEAD_DIM // 2
        mask = is_row[:, None] & (columns < half)[None, :]
        place = q + row[:, None] * HEAD_DIM + columns[None, :]
        q1, q2 = tl.load(place, mask=mask, other=0.0), tl.load(place + half, mask=mask, other=0.0)
        bias = key_bias + kv_head * HEAD_DIM + columns
        b1 = tl.load(bias, mask=columns < half, other=0.0)[None, :]
        b2 = tl.load(bias + half, mask=columns < half, other=0.0)[None, :]
        return q1 * b1 + q2 * b2, q2 * b1 - q1 * b2
    else:
        nothing = tl.zeros([BLOCK_Q, HALF], tl.float32)
        return nothing, nothing


@triton.jit
def _bias_scores(rope_table, cosines, sines, positions, is_key, HEAD_DIM: tl.constexpr, HALF: tl.constexpr):
    columns = tl.arange(0, HALF)
    mask = (columns < HEAD_DIM // 2)[:, None] & is_key[None, :]
    place = rope_table + positions[None, :] * HEAD_DIM + columns[:, None]
    of_cosines = _dot_fp32(cosines, tl.load(place, mask=mask, other=0.0))
    return of_cosines + _dot_fp32(sines, tl.load(place + HEAD_DIM // 2, mask=mask, other=0.0))


@triton.jit
def finish_attention(
    partial, partial_max, partial_total, positions, lengths, order, out, scales, sums, num_rows, num_slots,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PARTITION: tl.constexpr, WINDOW: tl.constexpr, CAUSAL: tl.constexpr,
    SPLIT: tl.constexpr, HAS_ORDER: tl.constexpr, K_PAD: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr,
    PARTS: tl.constexpr, GROUP: tl.constexpr, HAS_SUMS: tl.constexpr,
):  # fmt: skip
    """Merges what `attend` left of a token's partitions and writes it as an activation: BLOCK columns a program.

    positions: of each token; lengths: of its sequence.
    """
    row, begin = tl.program_id(0), tl.program_id(1) * BLOCK
    columns = begin + tl.arange(0, BLOCK)
    is_inside = columns < HEADS * HEAD_DIM
    if HAS_ORDER:
        columns = tl.load(order + columns, mask=is_inside, other=0)
    head = columns // HEAD_DIM
    position = tl.load(positions + row)
    end = position + 1 if CAUSAL else tl.load(lengths + row)
    visible = tl.maximum(position + 1 - WINDOW, 0) if WINDOW else position * 0
    first = visible // PARTITION if SPLIT else position * 0
    last = (end + PARTITION - 1) // PARTITION if SPLIT else position * 0 + 1
    largest = tl.full([BLOCK], -float("inf"), tl.float32)
    total, result = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK, 1], tl.float32)
    for slot in range(first, last):
        at = (row * num_slots + slot).to(tl.int64) * HEADS + head
        top = tl.load(partial_max + at, mask=is_inside, other=-float("inf"))
        mass = tl.load(partial_total + at, mask=is_inside, other=0.0)
        acc = tl.load(partial + at * HEAD_DIM + columns % HEAD_DIM, mask=is_inside, other=0.0)
        largest, total, result = merge(largest, total, result, top, mass, acc[:, None])
    divided = tl.where(is_inside, tl.div_rn(tl.reshape(result, [BLOCK]), tl.where(is_inside, total, 1.0)), 0.0)
    store_activation(divided, row, begin, out, scales, sums, num_rows, K_PAD, BLOCK, KIND, PARTS, GROUP, HAS_SUMS)
