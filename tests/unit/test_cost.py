"""What a step must do, against closed forms."""

from __future__ import annotations

import pytest

from qwench.checkpoint.spec import ModelSpec
from qwench.config import QwenchConfig
from qwench.evaluate.cost import Cost, CostModel, Limits, StepShape
from qwench.program.ops import Program
from qwench.program.passes import fuse, set_formats
from qwench.program.qwen2 import build_qwen2

HIDDEN, INTER, LAYERS, VOCAB, KV = 64, 128, 2, 300, 32
CONFIG = {
    "model_type": "qwen2", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INTER,
    "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}  # fmt: skip
LAYER_WEIGHTS = HIDDEN * HIDDEN * 2 + HIDDEN * KV * 2 + 3 * HIDDEN * INTER
TWO_USERS = StepShape(new=[3, 1], context=[10, 5], num_logits=2)
PAIRS = 8 + 9 + 10 + 5  # of a query and a key that it sees


def program(fused: bool = True, activations: str = "int8", **config: object) -> Program:
    spec = ModelSpec.from_config(CONFIG | config)
    options = QwenchConfig(weights="int8", head_weights="bf16").resolve(spec)
    built = build_qwen2(spec)
    return set_formats(fuse(built) if fused else built, options.format_of, activations)


def cost_model(of: Program, weight_bytes: int = 1000, position_bytes: float = 1.0) -> CostModel:
    return CostModel(of, dict.fromkeys(of.weights, weight_bytes), position_bytes)


@pytest.mark.parametrize("fused", [True, False])
def test_operations_are_those_of_the_model(fused: bool) -> None:
    """Two users, 3 new tokens of 10 and 1 of 5: matrices once per token, the head once per user, attention by pair."""
    operations = cost_model(program(fused)).of_step(TWO_USERS).operations
    assert operations["int8"] == 2 * 4 * LAYERS * LAYER_WEIGHTS
    assert operations["fp32"] == 2 * 2 * VOCAB * HIDDEN + LAYERS * 4 * HIDDEN * PAIRS


def test_int16_activations_are_multiplied_in_two_parts() -> None:
    coarse, fine = (cost_model(program(activations=kind)).of_step(TWO_USERS) for kind in ("int8", "int16"))
    assert fine.operations == {"int8": 2 * coarse.operations["int8"], "fp32": coarse.operations["fp32"]}
    assert (fine.weight_bytes, fine.kv_bytes) == (coarse.weight_bytes, coarse.kv_bytes)


def test_a_window_bounds_attention() -> None:
    sliding = program(use_sliding_window=True, sliding_window=4, max_window_layers=0)
    step = StepShape([3], [10], 1)
    wide, narrow = (cost_model(p, 0, LAYERS).of_step(step) for p in (program(), sliding))
    assert wide.operations["fp32"] - narrow.operations["fp32"] == LAYERS * 4 * HIDDEN * ((8 + 9 + 10) - 3 * 4)
    # Position 8 sees 5 to 8, position 10 sees 7 to 10: six positions are read of ten; three are written either way.
    assert (wide.kv_bytes, narrow.kv_bytes) == (LAYERS * (10 + 3), LAYERS * (6 + 3))


def test_bytes_are_each_weight_once_the_rows_looked_up_and_the_cache_of_each_user() -> None:
    of = program()
    cost = cost_model(of, 3 * VOCAB, 7.0).of_step(StepShape([1, 1], [20, 30], 2))
    assert cost.weight_bytes == pytest.approx(3 * VOCAB * len(of.weights) + 2 * 3)
    assert cost.kv_bytes == pytest.approx(7 * (20 + 30) + 7 * 2)
    assert cost.memory_bytes == cost.weight_bytes + cost.kv_bytes


def test_without_logits_the_head_costs_nothing() -> None:
    of = program()
    ops = {op.name: op for op in of.ops}
    silent = StepShape([4], [4], 0)
    assert all(cost_model(of).of_op(ops[name], silent) == Cost() for name in ("take_rows", "final_norm", "lm_head"))
    assert cost_model(of).of_step(silent).operations["fp32"] == LAYERS * 4 * HIDDEN * 10


def test_activations_are_what_an_op_reads_and_writes() -> None:
    of = program()
    activations = {op.name: cost_model(of).of_op(op, TWO_USERS).activation_bytes for op in of.ops}
    row, quantized = HIDDEN * 4, 128 + 8  # fp32; int8 codes of one padded group with its scale and sum
    assert activations["embed"] == 4 * row
    assert activations["layers.0.attn_norm"] == 4 * (row + quantized)
    assert activations["layers.0.q_rope"] == 4 * (quantized + row)
    assert activations["layers.0.attn_add"] == 4 * (quantized + row + row)
    assert activations["take_rows"] == 2 * (row + row)
    assert activations["lm_head"] == 2 * (row + VOCAB * 4)


def test_a_step_takes_the_longest_of_memory_caches_and_arithmetic() -> None:
    step = Cost(weight_bytes=7e9, kv_bytes=3e9, activation_bytes=8e9, operations={"int8": 4e9, "fp32": 1e9})
    peaks = {"int8": 4.0, "fp32": 1.0}
    assert step.times(Limits(100.0, peaks, 8.0)) == pytest.approx({"memory": 0.1, "cache": 1.0, "arithmetic": 2.0})
    assert step.seconds(Limits(100.0, peaks)) == pytest.approx(2.0)
    assert step.seconds(Limits(2.0, peaks)) == pytest.approx(5.0)
    assert step.seconds(Limits(100.0, peaks, 1.0)) == pytest.approx(8.0)


def test_costs_add_up_and_divide() -> None:
    one = Cost(1, 2, 3, {"int8": 4})
    both = one + Cost(10, 20, 30, {"int8": 40, "fp32": 50})
    assert both == Cost(11, 22, 33, {"int8": 44, "fp32": 50})
    assert both.per(2) == Cost(5.5, 11, 16.5, {"int8": 22, "fp32": 25})
    of = program()
    costs = cost_model(of)
    assert costs.of_step(TWO_USERS) == sum((costs.of_op(op, TWO_USERS) for op in of.ops), Cost())
