"""Modules alone: their inputs arrive exactly, and one after the other they are the whole model, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import random_tensors

from qwench.artifact.artifact import Artifact, Manifest
from qwench.config import QwenchConfig
from qwench.evaluate.compiled import CompiledModel
from qwench.evaluate.metrics import relative_error
from qwench.evaluate.modules import Module, ModuleRunner, end_modules, layer_modules, module_program
from qwench.program.cache_groups import cache_groups
from qwench.program.memory import plan_memory
from qwench.program.ops import Program
from qwench.program.passes import fuse, set_formats
from qwench.program.qwen2 import build_qwen2
from qwench.targets.reference.target import ReferenceExecutor, ReferenceTarget
from qwench.targets.registry import get_target
from qwench.targets.target import CacheConfig

TARGETS = ["reference", "cpu"]
LENGTHS = (5, 1, 30)


def make_artifact(
    target: str, seed: int, std: float = 0.3, **options: str
) -> tuple[Artifact, Program, dict[str, np.ndarray]]:
    """A random model of odd sizes in memory, its unfused Program, and the tensors that both were made of."""
    from programs import random_spec

    rng = np.random.default_rng(seed)
    spec = random_spec(rng, num_layers=2, sliding_windows=(None, 7))
    config = QwenchConfig(target=target, max_seq_len=64, prefill_chunk_size=32, **options).resolve(spec)
    unfused = build_qwen2(spec)
    program = set_formats(fuse(unfused), config.format_of, str(config.activations))
    tensors = random_tensors(unfused, rng, std)
    chosen, packed = get_target(target), {}
    for weight in program.weights.values():
        out = {p.name: np.full(p.shape, 255, p.dtype) for p in chosen.packed_tensors(weight)}
        chosen.pack(weight, [tensors[s] for s in weight.sources], out)
        packed |= out
    manifest = Manifest("", "", "", "", {}, chosen.layout, {}, {}, {})
    return Artifact(Path("none"), manifest, config, program, plan_memory(program, 32), packed), unfused, tensors


def true_values(unfused: Program, tensors: dict[str, np.ndarray], sequence: np.ndarray) -> dict[str, np.ndarray]:
    """Every value of the unfused model in fp32, by the specification of each op."""
    from qwench.evaluate.batches import whole_sequences

    target = ReferenceTarget()
    packed = {}
    for weight in unfused.weights.values():
        out = {p.name: np.zeros(p.shape, p.dtype) for p in target.packed_tensors(weight)}
        target.pack(weight, [tensors[s] for s in weight.sources], out)
        packed |= out
    executor = target.load(unfused, plan_memory(unfused, 64), packed, CacheConfig(8, 16, "fp32"), 1)
    assert isinstance(executor, ReferenceExecutor)
    return executor.step_buffers(whole_sequences([sequence], 16, len(cache_groups(unfused.spec))))


def all_modules(program: Program) -> list[Module]:
    layers = [m for i in range(program.spec.num_layers) for m in layer_modules(program, i)]
    return [*layers, *end_modules(program)]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("options", [{}, {"weights": "int8"}, {"weights": "int4"}], ids=["bf16", "int8", "int4"])
def test_layer_after_layer_is_the_model(target: str, options: dict[str, str]) -> None:
    """Layers alone, each on what the one before gave: every input arrived exactly, or the logits would differ."""
    artifact, _, _ = make_artifact(target, 3, **options)
    rng, spec = np.random.default_rng(4), artifact.program.spec
    sequences = [rng.integers(0, spec.vocab_size, n).astype(np.int32) for n in LENGTHS]
    runner = ModuleRunner(artifact, 2)
    embedding, head = end_modules(artifact.program)
    state = runner.run(embedding, None, sequences)
    for layer in range(spec.num_layers):
        state = runner.run(layer_modules(artifact.program, layer)[-1], state, sequences)
    logits = runner.run(head, state, sequences)
    with CompiledModel(artifact, 2) as model:
        expected = np.concatenate([model.run(ids)[0] for ids in sequences])
    if target == "reference":  # NumPy's own products depend on the number of rows
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    else:
        np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", [3, 8])
def test_each_module_is_what_the_specification_says(target: str, seed: int) -> None:
    """Of bf16 weights, where the truth is the same numbers in fp32."""
    artifact, unfused, tensors = make_artifact(target, seed)
    ids = np.random.default_rng(5).integers(0, artifact.program.spec.vocab_size, 23).astype(np.int32)
    truth = true_values(unfused, tensors, ids)
    runner = ModuleRunner(artifact, 2)
    for module in all_modules(artifact.program):
        output = runner.run(module, truth[module.source] if module.source else None, [ids])
        assert relative_error(output, truth[module.result]).max() < 2e-5, module


@pytest.mark.parametrize("options", [{"weights": "int8"}, {"weights": "int4", "group_size": 32}], ids=["int8", "int4"])
def test_modules_have_the_model_s_formats(options: dict[str, Any]) -> None:
    """The reference target of the same quantised weights gives what the cpu's kernels give, beside a cache that leaves
    queries as they are: rounded, they move codes to the other side by the dozen."""
    options = {**options, "kv_cache": "bf16"}
    results = []
    for target in ("reference", "cpu"):
        artifact, unfused, tensors = make_artifact(target, 6, std=0.1, **options)
        ids = np.random.default_rng(7).integers(0, artifact.program.spec.vocab_size, 20).astype(np.int32)
        truth = true_values(unfused, tensors, ids)
        runner = ModuleRunner(artifact, 2)
        inputs = [truth[m.source] if m.source else None for m in all_modules(artifact.program)]
        results.append([runner.run(m, x, [ids]) for m, x in zip(all_modules(artifact.program), inputs)])
    for module, expected, output in zip(all_modules(artifact.program), *results):
        # A code on the edge may fall to either side, and is then off by one step.
        assert np.median(relative_error(output, expected)) < 1e-3, module


def test_a_module_s_program_is_made_of_the_model_s_ops() -> None:
    model = make_artifact("cpu", 3, weights="int8")[0].program
    ops = {op.name: op for op in model.ops}
    for module in all_modules(model):
        program = module_program(model, module)
        own = [op for op in program.ops if op.name in module.ops]
        assert [op.name for op in own] == list(module.ops)
        for op in own:
            assert op.weights == ops[op.name].weights
            assert program.buffers[op.output] == model.buffers[op.output]
            assert all(program.weights[name] == model.weights[name] for name in op.weights)
            if op.name != module.ops[-1] or module.keeps_residual:
                assert (op.kind, op.inputs) == (ops[op.name].kind, ops[op.name].inputs)
            else:
                assert (op.kind, ops[op.name].kind) == ("linear", "linear_add")
        assert set(program.ops[0].inputs) == set() and program.ops[0].kind == "embed"
        assert len(program.results) == 1
