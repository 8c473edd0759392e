"""transformers' own model of a checkpoint, and what happens inside it: the truth that compiled models are judged by.

Knows nothing of qwench but the names of a Program's values (`program/qwen2.py`). Called by `evaluate/truth.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, __version__
from transformers.utils import logging

from qwench.checkpoint.checkpoint import Checkpoint, as_floats
from qwench.checkpoint.open_checkpoint import open_checkpoint
from qwench.program.models import source_shapes
from qwench.targets.target import Float32, Int32

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class OriginalModel:
    """The causal model on the CPU in one dtype. Sets the number of torch's threads.

    rope_scaling: in place of the one in the checkpoint's config.json.
    """

    def __init__(
        self, checkpoint: Path, dtype: Literal["fp32", "bf16"], num_threads: int,
        rope_scaling: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        torch.set_num_threads(num_threads)
        self.name = f"transformers {__version__} {dtype}"
        config = None if rope_scaling is None else _scaled_config(checkpoint, rope_scaling)
        with _quiet():
            self._model = _load(open_checkpoint(checkpoint, num_threads), config, DTYPES[dtype]).eval()

    def logits(self, sequences: Sequence[Int32]) -> Float32:
        """[num_tokens, vocab_size] fp32, the sequences' tokens one after the other."""
        return np.concatenate([self._logits(ids) for ids in sequences])

    def trace(self, sequences: Sequence[Int32]) -> dict[str, Float32]:
        """Logits, and every module's output, by the name of the same value in a Program: [num_tokens, width] fp32."""
        traces = [self._trace(ids) for ids in sequences]
        return {name: np.concatenate([trace[name] for trace in traces]) for name in traces[0]}

    def _logits(self, token_ids: Int32) -> Float32:
        ids = torch.from_numpy(token_ids.astype(np.int64))[None]
        with torch.inference_mode():
            return _to_numpy(self._model(input_ids=ids, use_cache=False).logits)

    def _trace(self, token_ids: Int32) -> dict[str, Float32]:
        values: dict[str, Float32] = {}
        with self._watched(values):
            values["lm_head"] = self._logits(token_ids)
        return values

    @contextmanager
    def _watched(self, values: dict[str, Float32]) -> Iterator[None]:
        inner = self._model.model
        modules: list[tuple[Any, str, str | None]] = [
            (inner.embed_tokens, "embed", None),
            (inner.norm, "final_norm", None),
        ]
        for i, layer in enumerate(inner.layers):
            at = f"layers.{i}"
            modules += [
                (layer.input_layernorm, f"{at}.attn_norm", None),
                (layer.self_attn, f"{at}.o", None),
                (layer.post_attention_layernorm, f"{at}.mlp_norm", f"{at}.attn_add"),
                (layer.mlp, f"{at}.down", None),
                (layer, f"{at}.mlp_add", None),
            ]
        hooks = [module.register_forward_hook(_keep(values, out, into)) for module, out, into in modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _load(checkpoint: Checkpoint, config: PretrainedConfig | None, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a checkpoint; a quantised one is dequantised, as its format says, and then is like any other."""
    if not checkpoint.is_quantized:
        return AutoModelForCausalLM.from_pretrained(checkpoint.path, config=config, dtype=dtype)
    data = json.loads(checkpoint.texts()["config.json"])
    data.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(config or _config(data)).to(dtype)
    checkpoint.check(source_shapes(checkpoint.spec))
    with torch.no_grad():
        for name, values in _stored_parameters(model):
            values.copy_(torch.from_numpy(as_floats(checkpoint.read(name)).astype(np.float32)))
            checkpoint.release(name)
    return model


def _stored_parameters(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Name in a checkpoint and values of every parameter; transformers 5 has all experts of a layer in one."""
    for name, parameter in model.named_parameters():
        stem, _, stacked = name.rpartition(".")
        if not stem.endswith(".experts"):
            yield name, parameter
        else:
            for expert, matrices in enumerate(parameter):
                projections = ("gate_proj", "up_proj") if stacked == "gate_up_proj" else (stacked,)
                for projection, values in zip(projections, matrices.chunk(len(projections)), strict=True):
                    yield f"{stem}.{expert}.{projection}.weight", values


def _scaled_config(checkpoint: Path, scaling: Mapping[str, Any]) -> PretrainedConfig:
    """config.json with another `rope_scaling`, in the spelling that every version of transformers reads."""
    opened = open_checkpoint(checkpoint)
    own = opened.spec
    scaled = own.with_rope_scaling(scaling)
    known = scaled.rope.parameters.keys() & {"original_max_position_embeddings", "factor"}
    complete = {**scaling, **{name: scaled.rope.parameters[name] for name in known}, "rope_theta": scaled.rope.theta}
    # transformers takes the length of a dynamically scaled model for the one before scaling
    length = own.max_position_embeddings if scaled.rope.depends_on_length else scaled.max_position_embeddings
    data = json.loads(opened.texts()["config.json"])
    for name in ("rope_parameters", "quantization_config"):
        data.pop(name, None)
    data |= {"rope_scaling": complete, "rope_theta": scaled.rope.theta, "max_position_embeddings": length}
    return _config(data)


def _config(data: dict[str, Any]) -> PretrainedConfig:
    """Of what config.json says."""
    return AutoConfig.for_model(**data)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bar for loading: the caller has progress of its own."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _keep(values: dict[str, Float32], output: str, input: str | None) -> Callable[..., None]:
    """A forward hook that notes a module's output and, under a second name, what enters it."""

    def hook(module: Any, arguments: tuple[Any, ...], result: Any) -> None:
        values[output] = _to_numpy(result[0] if isinstance(result, tuple) else result)
        if input is not None:
            values[input] = _to_numpy(arguments[0])

    return hook


def _to_numpy(tensor: torch.Tensor) -> Float32:
    """[1, num_tokens, width] of any dtype -> [num_tokens, width] fp32, a copy."""
    return np.array(tensor.detach()[0].float().numpy(), np.float32)
