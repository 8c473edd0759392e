"""What a compiled model is compared with: the checkpoint in fp32, run by transformers or by the reference target.

A truth gives its values by the names of the unfused Program (`program/qwen2.py`): "layers.0.attn_norm", "lm_head".
Knows nothing of compiled models and of metrics. Called by `verify.py`, `perplexity.py` and `book.py`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from qwench.checkpoint.spec import ModelSpec
from qwench.checkpoint.weights import Checkpoint
from qwench.errors import ConfigError
from qwench.evaluate.batches import num_blocks, whole_sequences
from qwench.host import num_cpus
from qwench.program.cache_groups import cache_groups
from qwench.program.formats import FP32
from qwench.program.qwen2 import build_qwen2
from qwench.targets.reference.ops import Matrix
from qwench.targets.reference.target import ReferenceExecutor
from qwench.targets.target import CacheConfig, Float32, Int32

TruthKind = Literal["auto", "transformers", "reference"]
BLOCK_SIZE = 32


class Truth(Protocol):
    """An uncompiled model. `name`: what reports call it."""

    name: str

    def trace(self, token_ids: Int32) -> dict[str, Float32]:
        """Every value of `TRACED` for one sequence, by its name in the unfused Program: [num_tokens, width] fp32."""
        ...

    def logits(self, token_ids: Int32) -> Float32:
        """[num_tokens, vocab_size] fp32."""
        ...


def traced_names(num_layers: int) -> list[str]:
    """The values that a trace holds: what each module of the model gives, and what enters the two of a layer."""
    parts = ("attn_norm", "o", "attn_add", "mlp_norm", "down", "mlp_add")
    layers = [f"layers.{i}.{part}" for i in range(num_layers) for part in parts]
    return ["embed", *layers, "final_norm", "lm_head"]


def open_truth(checkpoint: Path, kind: TruthKind = "auto", num_threads: int | None = None) -> Truth:
    """The checkpoint in fp32; "auto": transformers when it is installed, else the reference target.

    Raises ConfigError when transformers is asked for and absent, CheckpointError when the checkpoint isn't sound.
    """
    if kind == "auto":
        kind = "transformers" if has_transformers() else "reference"
    if kind == "reference":
        return ReferenceModel(checkpoint)
    return open_transformers(checkpoint, "fp32", num_threads)


def open_transformers(checkpoint: Path, dtype: Literal["fp32", "bf16"], num_threads: int | None = None) -> Truth:
    """transformers' own model of the checkpoint. Raises ConfigError without transformers."""
    if not has_transformers():
        raise ConfigError(
            'transformers isn\'t installed; pip install "qwench[hf]", or compare with the reference target '
            "(--truth reference)"
        )
    from qwench.modeling.original import OriginalModel

    return OriginalModel(checkpoint, dtype, num_cpus() if num_threads is None else num_threads)


def has_transformers() -> bool:
    """Whether transformers and torch are installed; imports neither."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


class ReferenceModel:
    """The reference target over the checkpoint's weights in fp32, unfused. Slow, and needs no torch."""

    name = "reference fp32"

    def __init__(self, checkpoint: Path) -> None:
        self._program = build_qwen2(ModelSpec.from_folder(checkpoint))
        tensors = Checkpoint(checkpoint, num_cpus())
        tensors.check({weight.name: weight.shape for weight in self._program.weights.values()})
        self._weights: dict[str, Any] = {}
        for name, weight in self._program.weights.items():
            values: npt.NDArray[Any] = tensors.array(name).astype(np.float32)
            self._weights[name] = values if weight.is_vector else Matrix(FP32, values)
            tensors.release(name)

    def trace(self, token_ids: Int32) -> dict[str, Float32]:
        buffers = self._run([token_ids])
        return {name: buffers[name] for name in traced_names(self._program.spec.num_layers)}

    def logits(self, token_ids: Int32) -> Float32:
        return self._run([token_ids])["lm_head"]

    def _run(self, sequences: Sequence[Int32]) -> dict[str, Float32]:
        groups = len(cache_groups(self._program.spec))
        blocks = num_blocks([len(ids) for ids in sequences], BLOCK_SIZE, groups)
        executor = ReferenceExecutor(self._program, self._weights, CacheConfig(blocks, BLOCK_SIZE, "fp32"))
        return executor.step_buffers(whole_sequences(sequences, BLOCK_SIZE, groups))
