"""Which page builds the Program of which model. A new model is a page beside these and an entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qwench.checkpoint.spec import HEAD, ModelSpec
from qwench.program.ops import Program
from qwench.program.qwen2 import build_qwen2
from qwench.program.qwen3 import build_qwen3

BUILDERS: Mapping[str, Callable[[ModelSpec], Program]] = {
    "qwen2": build_qwen2, "qwen3": build_qwen3, "qwen2_moe": build_qwen2, "qwen3_moe": build_qwen3,
}  # fmt: skip


def build_program(spec: ModelSpec) -> Program:
    """The Program of a model, unfused: what its page says."""
    return BUILDERS[spec.model_type](spec)


def source_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Checkpoint tensor -> shape, for every tensor that the model reads. Before fusion each weight is one tensor."""
    return {weight.name: weight.shape for weight in build_program(spec).weights.values()}


def adaptable_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Matrix -> shape, by the names that adapters give them: a head has its own where it is the embedding's, too."""
    shapes: dict[str, tuple[int, ...]] = {n: shape for n, shape in source_shapes(spec).items() if len(shape) == 2}
    if spec.head.kind == "causal_lm":
        shapes[HEAD] = (spec.vocab_size, spec.hidden_size)
    return shapes
