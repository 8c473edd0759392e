"""Passes: a fused Program computes what the plain one does, and formats reach the activations that need them."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from tiny_checkpoint import CONFIG, tiny_tensors

from qwench.checkpoint.spec import ModelSpec
from qwench.errors import ConfigError
from qwench.formats import BF16, FP32, Format
from qwench.program.memory import plan_memory
from qwench.program.models import build_program
from qwench.program.ops import OP_KINDS, Program, Weight
from qwench.program.passes import fuse, set_formats
from qwench.targets.reference.target import ReferenceTarget
from qwench.targets.target import CacheConfig, StepBatch

INT4, INT8 = Format("int4", 32), Format("int8", 32)


def plain(**config: object) -> Program:
    return build_program(ModelSpec.from_config(CONFIG | config))


def logits(program: Program, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """All logits of a prompt of seven tokens and of one token more."""
    target = ReferenceTarget()
    packed: dict[str, np.ndarray] = {}
    for weight in program.weights.values():
        out = {t.name: np.empty(t.shape, t.dtype) for t in target.packed_tensors(weight)}
        target.pack(weight, [tensors[s] for s in weight.sources], out)
        packed |= out
    executor = target.load(program, plan_memory(program, 16), packed, CacheConfig(3, 16, "fp32"), 1)
    table = np.array([[2, 1]], np.int32)
    results = []
    for tokens, length in (([5, 299, 0, 17, 17, 250, 3], 7), ([42], 8)):
        ids, rows = np.array(tokens, np.int32), np.arange(len(tokens), dtype=np.int32)
        starts = np.array([0, len(tokens)], np.int32)
        results.append(executor.step(StepBatch(ids, starts, np.array([length], np.int32), table, rows)))
    return np.concatenate(results)


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": False}, {"use_sliding_window": True,
                         "sliding_window": 3, "max_window_layers": 1}])  # fmt: skip
@pytest.mark.parametrize("fmt", [BF16, INT8, INT4])
def test_fusion_changes_nothing(config: dict[str, object], fmt: Format) -> None:
    tensors = tiny_tensors(tied=config.get("tie_word_embeddings", True))
    program = set_formats(plain(**config), lambda weight: fmt, "int8")
    fused = set_formats(fuse(plain(**config)), lambda weight: fmt, "int8")
    expected = logits(program, tensors)
    np.testing.assert_allclose(logits(fused, tensors), expected, atol=2e-5 * np.abs(expected).max())


QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 18}


@pytest.mark.parametrize("fmt", [BF16, INT8])
def test_fusion_takes_the_norms_of_heads_in(fmt: Format) -> None:
    program, rng = plain(**QWEN3), np.random.default_rng(0)
    tensors = {name: rng.standard_normal(w.shape, np.float32) * np.float32(0.2) for name, w in program.weights.items()}
    fused = fuse(program)
    assert fused.weights.keys() >= {"layers.0.qkv.weight", "model.layers.0.self_attn.q_norm.weight"}
    assert not any(name.endswith("bias") for name in fused.weights) and "head_norm" not in {op.kind for op in fused.ops}
    expected = logits(set_formats(program, lambda weight: fmt, "int8"), tensors)
    got = logits(set_formats(fused, lambda weight: fmt, "int8"), tensors)
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())


def test_ops_of_a_fused_layer() -> None:
    program = fuse(plain())
    assert [op.kind for op in program.ops if op.name.startswith("layers.1.")] == [
        "take_rows", "rms_norm", "qkv_rope_write", "attention", "linear_add", "rms_norm", "gate_up_silu", "linear_add",
    ]  # fmt: skip
    assert {op.kind for op in program.ops} <= set(OP_KINDS)
    assert Counter(op.kind for op in program.ops)["linear"] == 1  # the head


def test_fusion_keeps_every_tensor_once() -> None:
    def sources(program: Program) -> Counter[str]:
        return Counter(s for weight in program.weights.values() for s in weight.sources)

    assert sources(fuse(plain())) == sources(plain()) == Counter(dict.fromkeys(tiny_tensors(), 1))
    untied = sources(fuse(plain(tie_word_embeddings=False)))
    assert untied == Counter(dict.fromkeys(tiny_tensors(tied=False), 1))


def test_fused_weights_stack_their_sources() -> None:
    weights = fuse(plain()).weights
    assert weights["layers.0.qkv.weight"].shape == (64 + 32 + 32, 64)
    assert weights["layers.0.qkv.bias"].shape == (128,) and weights["layers.0.qkv.bias"].format == FP32
    assert weights["layers.0.gate_up.weight"].shape == (192, 64) and weights["layers.0.gate_up.weight"].paired
    assert [s.rsplit(".", 2)[1] for s in weights["layers.0.qkv.weight"].sources] == ["q_proj", "k_proj", "v_proj"]


def test_buffers_have_one_writer_before_their_readers() -> None:
    for program in (plain(), fuse(plain())):
        written: set[str] = set()
        for op in program.ops:
            assert set(op.inputs) <= written, op.name
            assert op.output not in written
            written |= {op.output} - {""}
        assert set(program.buffers) == written


@pytest.mark.parametrize("activations", ["int8", "int16"])
def test_formats_reach_the_activations(activations: str) -> None:
    def choose(weight: Weight) -> Format:
        return INT8 if weight.name == "model.embed_tokens.weight" else INT4

    program = set_formats(fuse(plain()), choose, activations)
    formats = {name: str(buffer.format) for name, buffer in program.buffers.items()}
    quantised = {"attn_norm", "attention", "mlp_norm", "silu_mul"}
    for name, fmt in formats.items():
        expected = f"{activations}/g32" if name.rpartition(".")[2] in quantised or name == "final_norm" else "fp32"
        assert fmt == expected, name
    assert all(weight.format == FP32 for weight in program.weights.values() if weight.is_vector)
    assert all(buffer.format == FP32 for buffer in set_formats(fuse(plain()), lambda w: BF16, "int8").buffers.values())
    rounded = set_formats(fuse(plain()), lambda w: BF16, "bf16").buffers
    for name, buffer in rounded.items():
        assert buffer.format == (BF16 if name.rpartition(".")[2] in quantised or name == "final_norm" else FP32), name


def test_readers_that_disagree() -> None:
    """A norm is computed once for each format that its readers need; of anything else they must agree."""

    def choose(weight: Weight) -> Format:
        return INT4 if "gate" in weight.name else BF16

    program = set_formats(plain(), choose, "int8")
    norms = {op.output for op in program.ops if op.name.startswith("layers.0.mlp_norm")}
    assert {str(program.buffers[name].format) for name in norms} == {"int8/g32", "fp32"}
    readers = {op.inputs[0] for op in program.ops if op.name in ("layers.0.gate", "layers.0.up")}
    assert readers == norms and len(norms) == 2
    ops = tuple(dataclasses.replace(op, kind="add") if op.kind == "rms_norm" else op for op in plain().ops)
    with pytest.raises(ConfigError, match=r"readers of layers\.0\.mlp_norm need different activation formats"):
        set_formats(dataclasses.replace(plain(), ops=ops), choose, "int8")


@pytest.mark.parametrize("fmt", [FP32, Format("int16", 32)], ids=str)
def test_formats_that_no_weight_has(fmt: Format) -> None:
    with pytest.raises(ConfigError, match=f"can't be {fmt}; weights are bf16, int8, int4"):
        set_formats(fuse(plain()), lambda weight: fmt, "int8")


@pytest.mark.parametrize("fmt", [BF16, INT4])
def test_a_program_survives_json(fmt: Format) -> None:
    for program in (plain(), *(set_formats(fuse(plain()), lambda weight: fmt, kind) for kind in ("int8", "int16"))):
        assert Program.from_dict(json.loads(json.dumps(program.to_dict()))) == program
