"""A compiled model of a published shape in memory: packed random weights, made in seconds and right for speed alone.

A panel of each matrix is packed from random numbers and repeated, so that 15 GB take as long as copying them. Called by
`gpu.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experts import COMMON
from benchmarks.experts import SHAPES as MIXTURES
from benchmarks.synthetic import STANDARD_DEVIATION, published_config
from qwench.artifact.artifact import derive_program
from qwench.checkpoint.spec import ModelSpec
from qwench.config import QwenchConfig
from qwench.program.memory import MemoryPlan, plan_memory
from qwench.program.ops import EXPERT_PRODUCTS, Program, Weight
from qwench.targets.registry import get_target
from qwench.targets.target import Array

PANEL = 64


@dataclass(frozen=True)
class RandomModel:
    """What `load_engine` needs of an artifact."""

    path: Path
    program: Program
    plan: MemoryPlan
    config: QwenchConfig
    tensors: Mapping[str, Array]

    @property
    def weight_bytes(self) -> int:
        """That a token reads: all but the embedding, of which it reads a row, unless that is the head, too; of a
        mixture the share of the experts that it chooses."""
        table, experts = self.program.ops[0].weights[0], self.program.spec.experts
        read = {name for op in self.program.ops[1:] for name in op.weights}
        of_experts = {name for op in self.program.ops if op.kind in EXPERT_PRODUCTS for name in op.weights}
        share = experts.top_k / experts.num_experts if experts else 1
        sizes = {name: t.nbytes for name, t in self.tensors.items() if name in read or name != table}
        return round(sum(size * (share if name in of_experts else 1) for name, size in sizes.items()))


def config_of(shape: str) -> dict[str, Any]:
    """The config.json of one of SHAPES in synthetic.py, or of a mixture's in experts.py."""
    return {**COMMON, **MIXTURES[shape]} if shape in MIXTURES else published_config(shape)


def random_model(shape: str, **options: Any) -> RandomModel:
    """shape: as of `config_of`; options: as of QwenchConfig."""
    spec = ModelSpec.from_config(config_of(shape))
    config = QwenchConfig(**options).resolve(spec)
    program = derive_program(config.model(spec), config.format_of, str(config.activations))
    tensors = _packed_tensors(tuple(program.weights.values()), str(config.target))
    plan = plan_memory(program, config.prefill_chunk_size or 512)
    return RandomModel(Path("random"), program, plan, config, tensors)


@lru_cache(maxsize=1)  # rows of a benchmark that follow one another often have the same
def _packed_tensors(weights: tuple[Weight, ...], target: str) -> Mapping[str, Array]:
    random = np.random.default_rng(0)
    return {weight.name: _packed(weight, target, random) for weight in weights}


def _packed(weight: Weight, target_name: str, random: np.random.Generator) -> Array:
    target = get_target(target_name)
    (whole,) = target.packed_tensors(weight)
    rows = weight.shape[0] if weight.is_vector else PANEL
    small = replace(weight, shape=(rows, *weight.shape[1:]))
    (tensor,) = target.packed_tensors(small)
    out = {tensor.name: np.zeros(tensor.shape, np.uint8)}
    values = random.standard_normal(small.shape, dtype=np.float32) * np.float32(STANDARD_DEVIATION)
    values += np.float32("norm" in weight.name)
    halves = 2 if weight.paired else 1
    target.pack(small, list(values.reshape(halves, rows // halves, *small.shape[1:])), out)
    return np.resize(out[tensor.name], whole.num_bytes)
