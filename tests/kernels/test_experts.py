"""Mixtures of experts: bits that depend on nothing but the token, ties, experts that nobody reads, broken scores."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from programs import (
    VARIANTS,
    Tensors,
    batch,
    load,
    make_target,
    model_program,
    random_spec,
    random_tensors,
)

from qwench.checkpoint.experts import ExpertsSpec
from qwench.checkpoint.spec import ModelSpec
from qwench.errors import ConfigError
from qwench.formats import BF16, FP32, Format
from qwench.program.memory import plan_memory
from qwench.program.models import build_program
from qwench.program.ops import Program
from qwench.program.passes import fuse, set_formats
from qwench.targets.target import CacheConfig

CACHE = CacheConfig(24, 16, "fp32")
KINDS = [(BF16, "fp32"), (BF16, "bf16"), (Format("int8", 32), "int8"), (Format("int4", 128), "int8"),
         (Format("int4", 32), "int16")]  # fmt: skip


def small_spec(rng: np.random.Generator, model_type: str, **experts: object) -> ModelSpec:
    spec = random_spec(rng, model_type=model_type, vocab_size=90, hidden_size=70, head_dim=16, num_layers=1,
                       sliding_windows=(None,))  # fmt: skip
    shared = 50 if model_type == "qwen2_moe" else 0
    chosen = ExpertsSpec(11, 3, 72, shared, normalizes=False, layers=(0,))
    return dataclasses.replace(spec, experts=dataclasses.replace(chosen, **experts))  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("fmt", "activations"), KINDS, ids=str)
def test_bits_are_those_of_the_request_alone(variant: str, fmt: Format, activations: str) -> None:
    """Whatever the chunk, the neighbours, and with them how many rows an expert multiplies, and the threads."""
    rng = np.random.default_rng(7)
    spec = small_spec(rng, "qwen2_moe" if activations == "int8" else "qwen3_moe")
    program = model_program(spec, fmt, activations)
    tensors = random_tensors(program, rng, std=0.1)
    ids = rng.integers(0, 90, 70).astype(np.int32)

    def run(chunks: list[int], threads: int, neighbours: int) -> np.ndarray:
        cache = dataclasses.replace(CACHE, num_blocks=5 * (neighbours + 1))
        executor = load(variant, program, tensors, cache, threads, tokens=70 * (neighbours + 1))
        tables = [list(range(5 * i, 5 * i + 5)) for i in range(neighbours + 1)]
        rows, done = [], 0
        for size in chunks:
            parts = [np.roll(ids, i)[done : done + size] for i in range(neighbours, -1, -1)]
            done += size
            rows.append(executor.step(batch(parts, [done] * (neighbours + 1), tables))[-size:].copy())
        return np.concatenate(rows)

    alone = run([70], 1, 0)
    assert np.isfinite(alone).all()
    for chunks, threads, neighbours in [([70], 3, 0), ([1] * 70, 2, 0), ([17, 52, 1], 2, 4)]:
        np.testing.assert_array_equal(run(chunks, threads, neighbours), alone, err_msg=f"{chunks} {neighbours}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_panels_may_be_added_two_at_a_time(variant: str) -> None:
    """Ten panels of the residual are an item each for two threads, and two an item for one."""
    rng = np.random.default_rng(9)
    spec = dataclasses.replace(small_spec(rng, "qwen2_moe"), hidden_size=600)
    program = model_program(spec, Format("int4", 32), "int8")
    tensors = random_tensors(program, rng, std=0.1)
    step = batch([rng.integers(0, 90, 40).astype(np.int32)], [40], [[0, 1, 2]])
    together, apart = (load(variant, program, tensors, CACHE, threads).step(step) for threads in (1, 2))
    assert np.isfinite(together).all()
    np.testing.assert_array_equal(together, apart)


def routes_of(program, tensors: Tensors, ids: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
    executor = load("reference", program, tensors, CACHE)
    return executor.step_buffers(batch([ids], [len(ids)], [[0, 1]]))["layers.0.route"]


@pytest.mark.parametrize("variant", ["reference", *VARIANTS])
def test_of_equal_experts_the_first_are_chosen(variant: str) -> None:
    """A router of zeros: all scores are equal, and the first experts have all the weight."""
    rng = np.random.default_rng(3)
    program = model_program(small_spec(rng, "qwen3_moe", normalizes=True), BF16)
    tensors = random_tensors(program, rng, std=0.1)
    router = "model.layers.0.mlp.gate.weight"
    tensors[router] = np.zeros_like(tensors[router])
    ids = rng.integers(0, 90, 20).astype(np.int32)
    np.testing.assert_allclose(routes_of(program, tensors, ids), [[0, 1, 2, 1 / 3, 1 / 3, 1 / 3]] * 20, rtol=1e-6)
    step = batch([ids], [20], [[0, 1]])
    expected = load(variant, program, tensors, CACHE).step(step).copy()
    for name in tensors:
        if ".experts." in name and int(name.split(".")[5]) > 2:
            tensors[name] = -tensors[name]
    np.testing.assert_array_equal(load(variant, program, tensors, CACHE).step(step), expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fmt", [BF16, Format("int4", 32)], ids=str)
def test_experts_that_nobody_chose_are_not_read(variant: str, fmt: Format) -> None:
    """Their weights may be anything, NaN included."""
    rng = np.random.default_rng(5)
    program = model_program(small_spec(rng, "qwen2_moe", num_experts=40), fmt)
    tensors = random_tensors(program, rng, std=0.1)
    ids = rng.integers(0, 90, 4).astype(np.int32)
    target, packed = make_target(variant), {}
    for weight in program.weights.values():
        out = {p.name: np.empty(p.shape, p.dtype) for p in target.packed_tensors(weight)}
        target.pack(weight, [tensors[s] for s in weight.sources], out)
        packed |= out
    step = batch([ids], [4], [[0]])

    def logits() -> np.ndarray:
        return target.load(program, plan_memory(program, 8), packed, CACHE, 2).step(step).copy()

    expected = logits()
    chosen = set(routes_of(program, tensors, ids)[:, :3].astype(int).ravel())
    others = [name for name in packed if ".experts." in name and _expert_of(name) not in chosen]
    assert len(others) == 2 * (40 - len(chosen)) > 40
    for name in others:
        packed[name][:] = 255
    np.testing.assert_array_equal(logits(), expected)


def _expert_of(name: str) -> int:
    return int(name.partition(".experts.")[2].split(".")[0])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("normalizes", [False, True])
def test_broken_scores_reach_the_logits(variant: str, normalizes: bool) -> None:
    rng = np.random.default_rng(5)
    program = model_program(small_spec(rng, "qwen3_moe", normalizes=normalizes), Format("int8", 32))
    tensors = random_tensors(program, rng, std=0.1)
    router = tensors["model.layers.0.mlp.gate.weight"]
    router[4] = np.nan
    got = load(variant, program, tensors, CACHE).step(batch([np.array([1, 2], np.int32)], [2], [[0]]))
    assert np.isnan(got).any(axis=1).all()


@pytest.mark.parametrize("model_type", ["qwen2_moe", "qwen3_moe"])
@pytest.mark.parametrize("fmt", [BF16, Format("int8", 32)], ids=str)
def test_fusion_changes_nothing(model_type: str, fmt: Format) -> None:
    rng = np.random.default_rng(6)
    spec = small_spec(rng, model_type)
    plain = set_formats(build_program(spec), lambda weight: fmt, "int8")
    fused = model_program(spec, fmt, "int8")
    assert Program.from_dict(json.loads(json.dumps(fused.to_dict()))) == fused
    tensors = random_tensors(plain, rng, std=0.1)
    step = batch([rng.integers(0, 90, 20).astype(np.int32)], [20], [[0, 1]])
    expected = load("reference", plain, tensors, CACHE).step(step)
    got = load("reference", fused, tensors, CACHE).step(step)
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())


def test_routers_are_exact_and_experts_agree() -> None:
    rng = np.random.default_rng(5)
    spec = small_spec(rng, "qwen2_moe")
    program = model_program(spec, Format("int4", 32))
    norms = {op.output: program.buffers[op.output].format for op in program.ops if op.name.startswith("layers.0.mlp_n")}
    assert sorted(map(str, norms.values())) == ["fp32", "int8/g32"]
    router = next(op for op in program.ops if op.kind == "route")
    assert program.weights[router.weights[0]].format == BF16
    assert norms[router.inputs[0]] == FP32
    plain = model_program(spec, BF16)
    assert sum(op.name.startswith("layers.0.mlp_n") for op in plain.ops) == 1

    def choose(weight) -> Format:  # type: ignore[no-untyped-def]
        return BF16 if ".experts.3." in weight.name else Format("int8", 32)

    with pytest.raises(ConfigError, match=r"experts of layers\.0\.silu_mul would be multiplied by fp32 and int8/g32"):
        set_formats(fuse(build_program(spec)), choose, "int8")
