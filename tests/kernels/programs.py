"""Small Programs over random weights, packed in memory: what the kernel tests run on each target."""

from __future__ import annotations

import dataclasses
from typing import Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from qwench.checkpoint.experts import MIXTURES, ExpertsSpec
from qwench.checkpoint.spec import ModelSpec, RopeSpec
from qwench.formats import BF16, FP32, NESTED_BLOCK, Format
from qwench.program.cache_groups import cache_groups
from qwench.program.memory import plan_memory
from qwench.program.models import BUILDERS, build_program
from qwench.program.ops import PRODUCTS, Buffer, Op, Program, Weight
from qwench.program.passes import fuse, set_formats, set_orders
from qwench.quantized_matrix import QuantizedMatrix
from qwench.targets.cpu import _native
from qwench.targets.cpu.target import CpuTarget
from qwench.targets.registry import get_target
from qwench.targets.target import Array, CacheConfig, Executor, StepBatch, Target

Tensors = dict[str, npt.NDArray[np.generic] | QuantizedMatrix]
MODELS = tuple(BUILDERS)  # their model_types
VARIANTS: list[str] = _native.supported_variants()  # of the cpu target's kernels, on this machine


def random_spec(rng: np.random.Generator, **fixed: object) -> ModelSpec:
    """A small model of odd sizes: nothing divides by anything it needn't. A mixture's layers all have experts."""
    kv_heads = int(rng.integers(1, 4))
    layers = int(rng.integers(1, 3))
    window = int(rng.integers(1, 40)) if rng.random() < 0.5 else None
    spec = ModelSpec(
        vocab_size=int(rng.integers(20, 300)),
        hidden_size=int(rng.integers(10, 150)),
        intermediate_size=int(rng.integers(10, 300)),
        num_layers=layers,
        num_heads=kv_heads * int(rng.integers(1, 8)),
        num_kv_heads=kv_heads,
        head_dim=2 * int(rng.integers(2, 41)),
        rms_norm_eps=1e-6,
        tie_word_embeddings=bool(rng.random() < 0.5),
        max_position_embeddings=512,
        rope=RopeSpec(10000.0),
        sliding_windows=tuple(window if i % 2 == 0 else None for i in range(layers)),
    )
    if fixed.get("model_type") in MIXTURES:
        fixed = {"experts": random_experts(rng, layers, has_shared=fixed["model_type"] == "qwen2_moe"), **fixed}
    return dataclasses.replace(spec, **fixed)  # type: ignore[arg-type]


def random_experts(rng: np.random.Generator, num_layers: int, has_shared: bool) -> ExpertsSpec:
    num_experts = int(rng.integers(1, 24))
    return ExpertsSpec(
        num_experts=num_experts,
        top_k=int(rng.integers(1, min(num_experts, 8) + 1)),
        intermediate_size=int(rng.integers(10, 150)),
        shared_intermediate_size=int(rng.integers(10, 300)) if has_shared else 0,
        normalizes=bool(rng.random() < 0.5),
        layers=tuple(range(num_layers)),
    )


def model_program(spec: ModelSpec, fmt: Format, activations: str | None = None) -> Program:
    """activations: by default the first kind that there is for the weights."""
    return set_formats(fuse(build_program(spec)), lambda weight: fmt, activations or default_activations(fmt))


def default_activations(fmt: Format) -> Literal["fp32", "int8"]:
    return "int8" if fmt.is_quantized else "fp32"


def linear_program(n: int, k: int, fmt: Format, activations: Literal["fp32", "bf16", "int8", "int16"]) -> Program:
    """Embedding -> norm with unit gain -> one linear; the embedding is exact in bf16, so the input is known."""
    spec = ModelSpec(64, k, k, 1, 1, 1, 2, 1e-6, False, 512, RopeSpec(10000.0), (None,))
    spec = dataclasses.replace(spec, vocab_size=n)
    act = Format(activations, fmt.group_size)
    buffers = {
        "x": Buffer("x", k),
        "rows": Buffer("rows", k, "logits"),
        "h": Buffer("h", k, "logits", act),
        "y": Buffer("y", n, "logits"),
    }
    weights = {
        "table": Weight("table", ("table",), (n, k), BF16),
        "gain": Weight("gain", ("gain",), (k,), FP32),
        "w": Weight("w", ("w",), (n, k), fmt),
    }
    ops = (
        Op("embed", "x", (), "x", ("table",)),
        Op("take_rows", "rows", ("x",), "rows", (), {"rows": "logits"}),
        Op("rms_norm", "h", ("rows",), "h", ("gain",), {"eps": 1e-6}),
        Op("linear", "y", ("h",), "y", ("w",)),
    )
    return Program(spec, buffers, weights, ops)


def random_tensors(program: Program, rng: np.random.Generator, std: float = 0.3) -> Tensors:
    """bf16 checkpoint tensors for every source of the program."""
    tensors: Tensors = {}
    for weight in program.weights.values():
        rows = weight.shape[0]
        spec = program.spec
        heights = {3: [spec.q_size, spec.kv_size, spec.kv_size], 2: [rows // 2] * 2, 1: [rows]}[len(weight.sources)]
        if weight.name.endswith(".route.weight") and len(weight.sources) > 1:  # with the shared expert's gate
            heights = [rows - 1, 1]
        for source, height in zip(weight.sources, heights, strict=True):
            if weight.format != Format(weight.format.kind, weight.format.group_size):
                tensors[source] = random_codes(rng, weight.format, (height, weight.shape[1]), std)
                continue
            values = rng.standard_normal((height, *weight.shape[1:]), dtype=np.float32) * std
            if "norm" in source or source == "gain":
                values += 1
            tensors[source] = values.astype(ml_dtypes.bfloat16)
    return tensors


def reordered(plain: Program, tensors: Tensors, rng: np.random.Generator) -> tuple[Program, Tensors]:
    """The same model with the columns of every matrix elsewhere, as desc_act leaves them."""
    ordered = set_orders(fuse(build_program(plain.spec)), lambda weight: True)
    program = set_formats(ordered, lambda weight: BF16, "fp32")
    moved: Tensors = {}
    for op in program.ops:
        if op.kind in PRODUCTS:
            order = program.weights[f"{op.inputs[0]}.order"]
            moved[order.sources[0]] = rng.permutation(order.shape[0]).astype(np.float32)
            for source in program.weights[op.weights[0]].sources:
                moved[source] = tensors[source][:, moved[order.sources[0]].astype(int)]
    moved |= {name: values for name, values in tensors.items() if name not in moved}
    for weight in program.weights.values():
        if weight.row_order:
            of_rows = moved[f"{weight.row_order}.order"].astype(int)
            moved |= {source: moved[source][of_rows] for source in weight.sources}
    return program, moved


def random_codes(rng: np.random.Generator, fmt: Format, shape: tuple[int, int], std: float) -> QuantizedMatrix:
    """A matrix as a checkpoint of that format could hold it, every code and the ends of every range included."""
    groups = (shape[0], fmt.padded_k(shape[1]) // fmt.group_size)
    blocks = (shape[0], -(-shape[1] // NESTED_BLOCK))
    low, high = (-128, 127) if fmt.kind == "int8" else (0, 15) if fmt.offsets else (-8, 7)
    unit, is_nested = std / high, fmt.scales == "nested"

    def scales(factor: float) -> npt.NDArray[np.float32]:
        if is_nested:
            return rng.integers(-32, 64, groups).astype(np.float32)
        values = (rng.standard_normal(groups, dtype=np.float32) * np.float32(factor)).astype(np.float32)
        return values.astype({"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}[fmt.scales]).astype(
            np.float32
        )

    def factors(unit: float) -> npt.NDArray[np.float32]:
        return (rng.random(blocks, np.float32) * np.float32(unit / 32)).astype(np.float16).astype(np.float32)

    has_minima = fmt.offsets == "min"
    return QuantizedMatrix(
        fmt,
        rng.integers(low, high + 1, shape).astype(np.int8),
        scales(unit),
        rng.integers(low, high + 1, groups).astype(np.int16) if fmt.offsets == "zero" else None,
        scales(std) if has_minima else None,
        factors(unit) if is_nested else None,
        factors(std) if is_nested and has_minima else None,
    )


def make_target(name: str) -> Target:
    """The reference, another target, or the cpu target with the kernels of that variant."""
    return CpuTarget("cpu", name) if name in VARIANTS else get_target(name)


def load(
    target: str, program: Program, tensors: Tensors, cache: CacheConfig, threads: int = 2, tokens: int = 96
) -> Executor:
    chosen = make_target(target)
    cache = dataclasses.replace(cache, num_blocks=cache.num_blocks * num_groups(program.spec))
    return chosen.load(program, plan_memory(program, tokens), pack(chosen, program, tensors), cache, threads)


def pack(target: Target, program: Program, tensors: Tensors) -> dict[str, Array]:
    """The packed weights of a Program, by name."""
    packed: dict[str, Array] = {}
    for weight in program.weights.values():
        out = {p.name: np.full(p.shape, 255, p.dtype) for p in target.packed_tensors(weight)}
        target.pack(weight, [tensors[s] for s in weight.sources], out)
        packed |= out
    return packed


def num_groups(spec: ModelSpec) -> int:
    return len(cache_groups(spec))


def batch(
    tokens: list[npt.NDArray[np.int32]], lengths: list[int], tables: list[list[int]], groups: int = 1
) -> StepBatch:
    """Sequence i gets `tokens[i]`, ends at `lengths[i]`, lies in blocks `tables[i]`; all rows' logits are wanted.

    Of several cache groups each has blocks of its own: `load` makes `groups` times as many.
    """
    width = max(map(len, tables))
    table = np.array([t + [0] * (width - len(t)) for t in tables], np.int32)
    table = (table[:, None] * groups + np.arange(groups)[:, None]).astype(np.int32).reshape(len(tables), -1)
    starts = np.cumsum([0] + [len(t) for t in tokens]).astype(np.int32)
    ids = np.concatenate(tokens).astype(np.int32)
    return StepBatch(ids, starts, np.array(lengths, np.int32), table, np.arange(len(ids), dtype=np.int32))
