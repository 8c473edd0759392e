"""`config.json` -> ModelSpec: the shape of a Qwen2 model, every published spelling understood, nothing guessed.

Knows nothing of tensors, formats or targets. Called by the compiler; the spec is stored in the Program.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwench.errors import CheckpointError

ROPE_TYPES = ("default", "linear", "yarn", "llama3")
MAX_SIZE = 2**31 - 1  # the native side counts in 32 bits; products are 64
LARGEST_SIZE = 2**31 - 1  # of any dimension: the native code counts them in 32 bits
MOST_LAYERS = 4096


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding: base `theta`, the type of scaling, and the parameters that the type needs."""

    theta: float
    rope_type: str = "default"
    parameters: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class ModelSpec:
    """The shape of one Qwen2 model. `sliding_windows` has one entry per layer: the window in tokens, or None."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope: RopeSpec
    sliding_windows: tuple[int | None, ...]

    def __post_init__(self) -> None:
        """Raises CheckpointError for a shape that no model has; whatever made the spec, kernels may rely on it."""
        sizes = (
            "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
            "max_position_embeddings",
        )  # fmt: skip
        for name in sizes:
            if not 0 < getattr(self, name) <= MAX_SIZE:
                raise CheckpointError(f"{name} is {getattr(self, name)}; it must be from 1 to {MAX_SIZE}")
        if self.num_heads % self.num_kv_heads or self.head_dim % 2:
            raise CheckpointError(
                f"{self.num_heads} heads over {self.num_kv_heads} KV heads of {self.head_dim}: heads must be a "
                "multiple of KV heads, and their size even"
            )
        if len(self.sliding_windows) != self.num_layers:
            raise CheckpointError(f"{len(self.sliding_windows)} sliding windows for {self.num_layers} layers")
        if any(window is not None and not 0 < window <= MAX_SIZE for window in self.sliding_windows):
            raise CheckpointError(f"a sliding window must be from 1 to {MAX_SIZE}")

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Inverse of `to_dict`."""
        return cls(**{**data, "rope": RopeSpec(**data["rope"]), "sliding_windows": tuple(data["sliding_windows"])})

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "config.json") -> ModelSpec:
        """Reads a Hugging Face config. Raises CheckpointError for anything that isn't a Qwen2 we can run exactly."""
        return _ConfigReader(config, where).read()

    @classmethod
    def from_folder(cls, folder: Path) -> ModelSpec:
        """Reads `folder/config.json`."""
        path = folder / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{folder} has no config.json; is it a Hugging Face checkpoint?") from None
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} can't be read as JSON: {error}") from None
        if not isinstance(config, dict):
            raise CheckpointError(f"{path} holds a {type(config).__name__}, not a JSON object")
        return cls.from_config(config, str(path))


class _ConfigReader:
    """Checks and translates one config; every complaint names the file and the field."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config, self.where = config, where

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {message}")

    def positive(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        if value is None:
            if default is None:
                raise self.error(f"{key} is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_SIZE:
            raise self.error(f"{key} must be a positive integer below 2^31, but is {value!r}")
        return value

    def flag(self, key: str) -> bool:
        value = self.config.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(f"{key} must be true or false, but is {value!r}")
        return bool(value)

    def number(self, source: Mapping[str, Any], key: str, default: float | None = None) -> float:
        value = source.get(key)
        if value is None:
            if default is None:
                raise self.error(f"{key} is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise self.error(f"{key} must be a positive number, but is {value!r}")
        return float(value)

    def read(self) -> ModelSpec:
        model_type = self.config.get("model_type")
        if model_type != "qwen2":
            raise self.error(f"model_type is {model_type!r}; qwench compiles model_type 'qwen2'")
        architectures = self.config.get("architectures") or ["Qwen2ForCausalLM"]
        if not isinstance(architectures, list) or "Qwen2ForCausalLM" not in architectures:
            raise self.error(f"architectures is {architectures!r}; qwench compiles 'Qwen2ForCausalLM'")
        if (activation := self.config.get("hidden_act", "silu")) not in ("silu", "swish"):
            raise self.error(f"hidden_act is {activation!r}; Qwen2 uses 'silu'")
        if self.config.get("quantization_config"):
            raise self.error("the checkpoint is already quantised (quantization_config); give the bf16 original")
        hidden, heads = self.positive("hidden_size"), self.positive("num_attention_heads")
        kv_heads = self.positive("num_key_value_heads", heads)
        if heads % kv_heads:
            raise self.error(f"num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({kv_heads})")
        if self.config.get("head_dim") is None and hidden % heads:
            raise self.error(f"hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads})")
        head_dim = self.positive("head_dim", hidden // heads)
        if head_dim % 2:
            raise self.error(f"head_dim is {head_dim}; rotary embedding needs an even one")
        if (layers := self.positive("num_hidden_layers")) > MOST_LAYERS:
            raise self.error(f"num_hidden_layers is {layers}; at most {MOST_LAYERS} are supported")
        positions = self.positive("max_position_embeddings", 32768)
        return ModelSpec(
            vocab_size=self.positive("vocab_size"),
            hidden_size=hidden,
            intermediate_size=self.positive("intermediate_size"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=self.number(self.config, "rms_norm_eps", 1e-6),
            tie_word_embeddings=self.flag("tie_word_embeddings"),
            max_position_embeddings=positions,
            rope=self.rope(positions),
            sliding_windows=self.sliding_windows(layers),
        )

    def sliding_windows(self, layers: int) -> tuple[int | None, ...]:
        """As transformers: `layer_types` decides if given, else layers from `max_window_layers` on slide."""
        window = None
        if self.flag("use_sliding_window") and self.config.get("sliding_window", 4096) is not None:
            window = self.positive("sliding_window", 4096)
        types = self.config.get("layer_types")
        if types is None:
            first = self.config.get("max_window_layers", 28)
            if isinstance(first, bool) or not isinstance(first, int) or first < 0:
                raise self.error(f"max_window_layers must be an integer of at least 0, but is {first!r}")
            return tuple(window if i >= first else None for i in range(layers))
        allowed = ("full_attention", "sliding_attention")
        if not isinstance(types, list) or len(types) != layers or any(t not in allowed for t in types):
            raise self.error(f"layer_types must list {layers} of {allowed}, but is {types!r}")
        if window is None and "sliding_attention" in types:
            raise self.error("layer_types has sliding_attention layers, but use_sliding_window gives no window")
        return tuple(window if t == "sliding_attention" else None for t in types)

    def rope(self, positions: int) -> RopeSpec:
        """Both spellings: `rope_theta` with `rope_scaling`, and the newer `rope_parameters`."""
        scaling = self.config.get("rope_scaling") or self.config.get("rope_parameters") or {}
        if not isinstance(scaling, dict):
            raise self.error(f"rope_scaling must be an object, but is {scaling!r}")
        nested = [v for k, v in scaling.items() if k in ("full_attention", "sliding_attention") and v is not None]
        if nested:
            if any(v != nested[0] for v in nested):
                raise self.error("rope_parameters differ between layer types; qwench needs one for all layers")
            scaling = nested[0]
        theta = self.number(scaling, "rope_theta", self.number(self.config, "rope_theta", 10000.0))
        if scaling.get("partial_rotary_factor", self.config.get("partial_rotary_factor", 1.0)) not in (1, None):
            raise self.error("partial_rotary_factor other than 1 is not part of Qwen2")
        rope_type = scaling.get("rope_type", scaling.get("type", "default"))
        if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
            raise self.error(f"rope_type is {rope_type!r}; supported: {', '.join(ROPE_TYPES)}")
        return RopeSpec(theta, rope_type, self.rope_parameters(rope_type, scaling, positions))

    def rope_parameters(self, rope_type: str, scaling: Mapping[str, Any], positions: int) -> dict[str, float]:
        if rope_type == "default":
            return {}
        if rope_type == "linear":
            return {"factor": self.number(scaling, "factor")}
        original = self.number(scaling, "original_max_position_embeddings", float(positions))
        if "original_max_position_embeddings" in self.config:
            original = self.number(self.config, "original_max_position_embeddings")
        if rope_type == "llama3":
            keys = ("factor", "low_freq_factor", "high_freq_factor")
            return {"original_max_position_embeddings": original} | {k: self.number(scaling, k) for k in keys}
        parameters = {
            "original_max_position_embeddings": original,
            "factor": self.number(scaling, "factor", positions / original),
            "beta_fast": self.number(scaling, "beta_fast", 32.0),
            "beta_slow": self.number(scaling, "beta_slow", 1.0),
            "truncate": float(bool(scaling.get("truncate", True))),
        }
        for key in ("attention_factor", "mscale", "mscale_all_dim"):
            if scaling.get(key):  # transformers takes 0 as absent, too
                parameters[key] = self.number(scaling, key)
        return parameters
