"""The memory plan: replayed on an arena whose every line remembers who wrote it last."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoint import CONFIG

from qwench.checkpoint.spec import ModelSpec
from qwench.formats import BF16, Format
from qwench.program.memory import ALIGNMENT, MemoryPlan, buffer_bytes, plan_memory
from qwench.program.ops import Buffer, Program
from qwench.program.passes import fuse, set_formats
from qwench.program.qwen2 import build_qwen2

FORMATS = [BF16, Format("int8", 32), Format("int4", 128)]


@st.composite
def programs(draw: st.DrawFn) -> Program:
    config = CONFIG | {
        "num_hidden_layers": draw(st.integers(1, 4)),
        "hidden_size": draw(st.sampled_from([8, 60, 64, 200])),
        "intermediate_size": draw(st.integers(1, 500)),
        "num_attention_heads": 4,
        "num_key_value_heads": draw(st.sampled_from([1, 2, 4])),
        "head_dim": draw(st.sampled_from([2, 16, 64])),
    }
    program = build_qwen2(ModelSpec.from_config(config))
    if draw(st.booleans()):
        program = fuse(program)
    fmt = draw(st.sampled_from(FORMATS))
    return set_formats(program, lambda weight: fmt, draw(st.sampled_from(["int8", "int16"])))


def lines(program: Program, plan: MemoryPlan, name: str) -> slice:
    size = buffer_bytes(program.buffers[name], plan.max_step_tokens)
    return slice(plan.offsets[name] // ALIGNMENT, -(-(plan.offsets[name] + size) // ALIGNMENT))


@settings(max_examples=80, deadline=None)
@given(programs(), st.integers(1, 70))
def test_nobody_reads_what_another_has_overwritten(program: Program, tokens: int) -> None:
    plan = plan_memory(program, tokens)
    assert program.results[-1] == program.ops[-1].output
    assert set(plan.offsets) == set(program.buffers) - set(program.results)
    assert all(offset % ALIGNMENT == 0 for offset in plan.offsets.values())
    owner = np.full(plan.arena_bytes // ALIGNMENT, "", dtype=object)
    for op in program.ops:
        for name in op.inputs:
            held = owner[lines(program, plan, name)]
            assert len(held) and (held == name).all(), f"{op.name} reads {name}, overwritten by {set(held)}"
        if op.output in ("", *program.results):
            continue
        place = lines(program, plan, op.output)
        assert place.stop <= len(owner)
        for name in op.inputs:  # kernels write while they read, so only an add may work in place, exactly
            other = lines(program, plan, name)
            apart = place.stop <= other.start or other.stop <= place.start
            in_place = op.kind in ("add", "linear_add") and name == op.inputs[1] and place == other
            assert apart or in_place, f"{op.name} writes over its input {name}"
        owner[place] = op.output


@settings(max_examples=40, deadline=None)
@given(programs())
def test_the_residual_stream_is_one_buffer(program: Program) -> None:
    plan = plan_memory(program, 16)
    residuals = [op.output for op in program.ops if op.kind in ("add", "linear_add")]
    assert {plan.offsets[name] for name in residuals} == {plan.offsets["embed"]}


def test_more_layers_cost_nothing() -> None:
    """Every layer reuses the bytes of the one before."""
    specs = [ModelSpec.from_config(CONFIG | {"num_hidden_layers": layers}) for layers in (2, 9)]
    shallow, deep = (plan_memory(fuse(build_qwen2(spec)), 33).arena_bytes for spec in specs)
    assert shallow == deep


def test_the_arena_is_as_small_as_what_lives_at_once() -> None:
    program = set_formats(fuse(build_qwen2(ModelSpec.from_config(CONFIG))), lambda weight: BF16, "fp32")
    # The residual stream, the normed input and gate with up's product live together: 64, 64 and 96 floats a token.
    assert plan_memory(program, 32).arena_bytes == 32 * 4 * (64 + 64 + 96)


@pytest.mark.parametrize(
    ("fmt", "width", "expected"),
    [(BF16, 10, 40), (Format("int8", 32), 64, 64 + 2 * 8), (Format("int8", 128), 130, 256 + 2 * 8)],
)
def test_bytes_of_a_row(fmt: Format, width: int, expected: int) -> None:
    assert buffer_bytes(Buffer("x", width, "tokens", fmt), 3) == 3 * expected
