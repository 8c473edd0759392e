"""What a compiled model is compared with: the checkpoint in fp32, run by transformers or by the reference target.

A truth gives its values by the names of the unfused Program (`program/qwen2.py`): "layers.0.attn_norm", "lm_head".
Knows nothing of compiled models and of metrics. Called by `verify.py`, `perplexity.py` and `book.py`.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from qwench.checkpoint.checkpoint import Checkpoint, as_floats
from qwench.checkpoint.open_checkpoint import open_checkpoint
from qwench.checkpoint.spec import ModelSpec
from qwench.config import QwenchConfig
from qwench.errors import ConfigError
from qwench.evaluate.batches import num_blocks, whole_sequences
from qwench.formats import FP32
from qwench.host import available_memory_bytes, num_cpus
from qwench.program.cache_groups import cache_groups
from qwench.program.models import build_program
from qwench.program.ops import Program
from qwench.targets.reference.ops import Matrix
from qwench.targets.reference.target import ReferenceExecutor
from qwench.targets.target import CacheConfig, Float32, Int32

TruthKind = Literal["auto", "transformers", "reference"]
BLOCK_SIZE = 32


class Truth(Protocol):
    """An uncompiled model. `name`: what reports call it."""

    name: str

    def trace(self, sequences: Sequence[Int32]) -> dict[str, Float32]:
        """The values of `traced_names`: [num_tokens, width] fp32, the sequences' tokens one after the other."""
        ...

    def logits(self, sequences: Sequence[Int32]) -> Float32:
        """[num_tokens, vocab_size] fp32, likewise."""
        ...


def traced_names(num_layers: int) -> list[str]:
    """The values that a trace holds: what each module of the model gives, and what enters the two of a layer."""
    parts = ("attn_norm", "o", "attn_add", "mlp_norm", "down", "mlp_add")
    layers = [f"layers.{i}.{part}" for i in range(num_layers) for part in parts]
    return ["embed", *layers, "final_norm", "lm_head"]


def open_truth(
    checkpoint: Path, config: QwenchConfig, kind: TruthKind = "auto", num_threads: int | None = None
) -> Truth:
    """The checkpoint in fp32, under the rope_scaling and for the length that `config`, a resolved one, asks for.

    "auto": transformers when it is installed, has room for the model in fp32, and means the same by the model's
    rope_type; else the reference target. Raises ConfigError when transformers is asked for and absent, CheckpointError
    when the checkpoint isn't sound.
    """
    spec = config.model(open_checkpoint(checkpoint).spec)
    if kind == "auto":
        fits = 4 * _num_weights(spec) < available_memory_bytes()
        kind = "transformers" if has_transformers() and fits and not spec.rope.depends_on_length else "reference"
    if kind == "reference":
        return ReferenceModel(checkpoint, spec)
    return open_transformers(checkpoint, "fp32", config, num_threads)


def open_transformers(
    checkpoint: Path, dtype: Literal["fp32", "bf16"], config: QwenchConfig | None = None, num_threads: int | None = None
) -> Truth:
    """transformers' own model of the checkpoint, with the rope_scaling of `config`.

    Raises ConfigError without transformers.
    """
    if not has_transformers():
        raise ConfigError(
            'transformers isn\'t installed; pip install "qwench[hf]", or compare with the reference target '
            "(--truth reference)"
        )
    from qwench.modeling.original import OriginalModel

    scaling = None if config is None else config.rope_scaling
    assert not isinstance(scaling, str), "what was read of the option"
    return OriginalModel(checkpoint, dtype, num_cpus() if num_threads is None else num_threads, scaling)


def has_transformers() -> bool:
    """Whether transformers and torch are installed; imports neither."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


class ReferenceModel:
    """The reference target over the checkpoint's weights in fp32, unfused. Slow, and needs no torch."""

    name = "reference fp32"

    def __init__(self, checkpoint: Path, spec: ModelSpec) -> None:
        self._program = build_program(spec)
        self._weights = _CheckpointWeights(open_checkpoint(checkpoint, num_cpus()), self._program)

    def trace(self, sequences: Sequence[Int32]) -> dict[str, Float32]:
        return self._run(sequences, traced_names(self._program.spec.num_layers))

    def logits(self, sequences: Sequence[Int32]) -> Float32:
        return self._run(sequences, ["lm_head"])["lm_head"]

    def _run(self, sequences: Sequence[Int32], names: Collection[str]) -> dict[str, Float32]:
        groups = len(cache_groups(self._program.spec))
        blocks = num_blocks([len(ids) for ids in sequences], BLOCK_SIZE, groups)
        executor = ReferenceExecutor(self._program, self._weights, CacheConfig(blocks, BLOCK_SIZE, "fp32"))
        return executor.step_buffers(whole_sequences(sequences, BLOCK_SIZE, groups), names)


class _CheckpointWeights(Mapping[str, Any]):
    """The weights of a checkpoint in fp32. Matrices stay in memory if all of them fit, else each is read when it's
    used: so a model whose weights in fp32 are larger than the memory can be a truth as well."""

    def __init__(self, checkpoint: Checkpoint, program: Program) -> None:
        checkpoint.check({weight.name: weight.shape for weight in program.weights.values()})
        self._checkpoint, self._weights = checkpoint, program.weights
        self._keeps_matrices = 4 * _num_weights(program.spec) < available_memory_bytes()
        self._kept: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name in self._kept:
            return self._kept[name]
        values: npt.NDArray[Any] = as_floats(self._checkpoint.read(name)).astype(np.float32)
        self._checkpoint.release(name)
        is_vector = self._weights[name].is_vector
        weight = values if is_vector else Matrix(FP32, values)
        if is_vector or self._keeps_matrices:
            self._kept[name] = weight
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def _num_weights(spec: ModelSpec) -> int:
    return sum(math.prod(weight.shape) for weight in build_program(spec).weights.values())
