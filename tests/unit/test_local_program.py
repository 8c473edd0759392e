"""What a rank computes whose memory is its own: every column has one rank, and gathers bring them together."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from qwench.checkpoint.experts import ExpertsSpec
from qwench.checkpoint.spec import ModelSpec, RopeSpec
from qwench.errors import TargetError
from qwench.program.local import LocalProgram, local_heads, local_program
from qwench.program.models import build_program
from qwench.program.ops import OP_KINDS, Program
from qwench.program.passes import fuse
from qwench.program.shard import Shares, shard

SPEC = ModelSpec(300, 192, 320, 2, 6, 2, 32, 1e-6, True, 64, RopeSpec(10000.0), (None, None))
PROGRAM = fuse(build_program(SPEC))


def ranks(program: Program, parts: tuple[int, ...]) -> list[LocalProgram]:
    shares = Shares(parts, (len(parts),))
    return [local_program(shard(program, shares, rank)) for rank in range(len(parts))]


@pytest.mark.parametrize("parts", [(1, 1), (1, 1, 1), (3, 1), (1, 1, 1, 1, 1, 1)])
def test_gathers_join_what_ranks_have_to_whole_rows(parts: tuple[int, ...]) -> None:
    locals_ = ranks(PROGRAM, parts)
    for rank, local in enumerate(locals_):
        assert {op.kind for op in local.program.ops} <= set(OP_KINDS)
        gathers = [op for op in local.program.ops if op.kind == "gather"]
        assert len(gathers) == 4 * SPEC.num_layers + 1
        assert gathers[-1].output == local.program.logits == PROGRAM.logits
        for op in gathers:
            columns, width = op.attrs["columns"], local.program.buffers[op.output].width
            assert columns[0][0] == 0 and columns[-1][1] == width
            assert all(a[1] == b[0] for a, b in pairwise(columns))
            own = columns[rank]
            assert op.attrs["has_own"] == (own[0] < own[1])
            assert all(
                start + last - first <= op.attrs["width"]
                for (first, last), start in zip(columns, op.attrs["starts"], strict=True)
            )


@pytest.mark.parametrize("parts", [(1, 1), (1, 1, 1), (3, 1)])
def test_every_row_of_a_product_has_one_rank(parts: tuple[int, ...]) -> None:
    found: dict[str, list[int]] = {}
    for local in ranks(PROGRAM, parts):
        for name, share in local.shares.items():
            rows = [row for first, last in share.rows for row in range(first, last)]
            assert local.program.weights[name].shape[0] == len(rows)
            found.setdefault(share.weight, []).extend(rows)
    for name, rows in found.items():
        counts = np.bincount(rows, minlength=PROGRAM.weights[name].shape[0])
        assert counts.min() >= 1
        assert counts.max() == 1 or "qkv" in name  # of which ranks that share a kv head have the same rows


def test_ranks_compute_all_query_heads_of_their_kv_heads() -> None:
    assert local_heads(SPEC, (0, 3)) == ((0, 1), (0, 3))
    assert local_heads(SPEC, (2, 4)) == ((0, 2), (0, 6))
    spec = ranks(PROGRAM, (1, 1, 1))[2].program.spec
    assert (spec.num_heads, spec.num_kv_heads) == (3, 1)


def test_mixtures_of_experts_are_refused() -> None:
    experts = ExpertsSpec(4, 2, 64, 0, True, (0, 1))
    mixture = fuse(build_program(dataclasses.replace(SPEC, model_type="qwen3_moe", experts=experts)))
    with pytest.raises(TargetError, match="can't be shared out among GPUs yet; leave tensor_parallel_size out"):
        ranks(mixture, (1, 1))
