"""`config.json` -> ModelSpec: the shape of a Qwen2 or Qwen3 model, in every spelling that transformers has written.

Unsupported and contradictory values are errors. Called by the compiler; the spec is stored in the Program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwench.checkpoint.experts import MIXTURES, ExpertsSpec, read_experts
from qwench.checkpoint.fields import LARGEST_SIZE, Fields
from qwench.checkpoint.heads import FAMILIES, LANGUAGE_MODEL, HeadSpec, read_head
from qwench.checkpoint.json_file import read_object
from qwench.checkpoint.rope import RopeSpec, read_rope, rope_type_of
from qwench.errors import CheckpointError, ConfigError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"  # may be one matrix
SCORES = ("score.weight", "score.0.weight", "score.2.weight")  # of a classifier, and of a deep one
MOST_LAYERS = 4096


@dataclass(frozen=True)
class ModelSpec:
    """The shape of one model.

    model_type: as in config.json; program/models.py says what is built of it. sliding_windows: per layer the window in
    tokens, or None. max_position_embeddings: as config.json says, but with YaRN at least what it extends the original
    length to. is_causal: whether a token sees only those before it; else all of its sequence.
    """

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
    model_type: str = "qwen2"
    head: HeadSpec = LANGUAGE_MODEL
    is_causal: bool = True
    experts: ExpertsSpec | None = None

    def __post_init__(self) -> None:
        """Raises CheckpointError for an impossible shape: kernels rely on this, wherever the spec comes from."""
        if self.model_type not in FAMILIES:
            raise CheckpointError(f"model_type is {self.model_type!r}; qwench compiles {', '.join(FAMILIES)}")
        sizes = (
            "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
            "max_position_embeddings",
        )  # fmt: skip
        for name in sizes:
            if not 0 < getattr(self, name) <= LARGEST_SIZE:
                raise CheckpointError(f"{name} is {getattr(self, name)}; it must be from 1 to {LARGEST_SIZE}")
        if self.num_heads % self.num_kv_heads or self.head_dim % 2:
            raise CheckpointError(
                f"{self.num_heads} heads over {self.num_kv_heads} KV heads of {self.head_dim}: heads must be a "
                "multiple of KV heads, and their size even"
            )
        if len(self.sliding_windows) != self.num_layers:
            raise CheckpointError(f"{len(self.sliding_windows)} sliding windows for {self.num_layers} layers")
        if any(window is not None and not 0 < window <= LARGEST_SIZE for window in self.sliding_windows):
            raise CheckpointError(f"a sliding window must be from 1 to {LARGEST_SIZE}")
        if (self.experts is not None) != (self.model_type in MIXTURES):
            raise CheckpointError(f"of model_type {self.model_type!r}, experts are {self.experts}")

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def num_outputs(self) -> int:
        """How many numbers the head gives for a row."""
        return self.vocab_size if self.head.kind == "causal_lm" else self.head.num_labels

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Inverse of `to_dict`."""
        parts = {
            "rope": RopeSpec.from_dict(data["rope"]),
            "sliding_windows": tuple(data["sliding_windows"]),
            "head": HeadSpec(**data.get("head", {})),
            "experts": _experts_of(data.get("experts")),
        }
        return cls(**{**data, **parts})

    def with_rope_scaling(self, scaling: Mapping[str, Any]) -> ModelSpec:
        """The model under another `rope_scaling` than its config.json has, long as its factor makes it.

        theta stays, and so does the length before scaling if config.json names it. Raises ConfigError.
        """
        fields = Fields(scaling, "rope_scaling", ConfigError)
        known = self.rope.parameters.get("original_max_position_embeddings", float(self.max_position_embeddings))
        original = fields.number("original_max_position_embeddings", known)
        # The config of a dynamically scaled model has no other length than the original.
        positions = int(original) if rope_type_of(fields) == "dynamic" else self.max_position_embeddings
        theta = fields.number("rope_theta", self.rope.theta)
        rope = read_rope(fields, theta, self.head_dim, positions, original)
        length = max(self.max_position_embeddings, int(original * rope.parameters.get("factor", 1.0)))
        return dataclasses.replace(self, rope=rope, max_position_embeddings=length).for_length(length)

    def for_length(self, seq_len: int) -> ModelSpec:
        """The model as it is compiled for sequences of up to `seq_len` tokens."""
        return dataclasses.replace(self, rope=self.rope.for_length(seq_len))

    def bidirectional(self) -> ModelSpec:
        """The model whose tokens see all of their sequence. Raises ConfigError where windows slide."""
        if any(self.sliding_windows):
            raise ConfigError(
                "bidirectional attention with sliding windows is not available; set use_sliding_window to false in "
                "config.json if the model does without"
            )
        return dataclasses.replace(self, is_causal=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "config.json") -> ModelSpec:
        """Reads a Hugging Face config. Raises CheckpointError for anything that isn't a model we can run exactly."""
        return _read(Fields(config, where))

    @classmethod
    def from_folder(cls, folder: Path) -> ModelSpec:
        """Reads `folder/config.json`."""
        path = folder / "config.json"
        if not path.exists():
            raise CheckpointError(f"{folder} has no config.json; is it a Hugging Face checkpoint?")
        return cls.from_config(read_object(path), str(path))


def _read(config: Fields) -> ModelSpec:
    """Checks and translates one config."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(map(repr, FAMILIES))
        raise config.error(f"model_type is {model_type!r}; qwench compiles model_type {known}")
    head = read_head(config, model_type)
    if (activation := config.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise config.error(f"hidden_act is {activation!r}; {model_type} uses 'silu'")
    _check_biases(config, model_type)
    hidden, heads = config.positive("hidden_size"), config.positive("num_attention_heads")
    kv_heads = config.positive("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.error(f"num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({kv_heads})")
    head_dim = _head_dim(config, model_type, hidden, heads)
    if (layers := config.positive("num_hidden_layers")) > MOST_LAYERS:
        raise config.error(f"num_hidden_layers is {layers}; at most {MOST_LAYERS} are supported")
    positions = config.positive("max_position_embeddings", 32768)
    rope = _rope(config, head_dim, positions)
    if rope.rope_type == "yarn":
        positions = max(positions, int(rope.parameters["original_max_position_embeddings"] * rope.parameters["factor"]))
    spec = ModelSpec(
        vocab_size=config.positive("vocab_size"),
        hidden_size=hidden,
        intermediate_size=config.positive("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=config.flag("tie_word_embeddings"),
        max_position_embeddings=positions,
        rope=rope,
        sliding_windows=_sliding_windows(config, model_type, layers),
        model_type=model_type,
        head=head,
        experts=read_experts(config, model_type, layers),
    )
    is_causal = config.flag("is_causal", True) and not config.flag("use_bidirectional_attention")
    return spec if is_causal else spec.bidirectional()


def _experts_of(data: Mapping[str, Any] | None) -> ExpertsSpec | None:
    return None if data is None else ExpertsSpec(**{**data, "layers": tuple(data["layers"])})


def _check_biases(config: Fields, model_type: str) -> None:
    """Biases are of q, k and v in Qwen2, and of none in Qwen3."""
    if model_type in ("qwen3", "qwen3_moe") and config.flag("attention_bias"):
        raise config.error("attention_bias is true; qwench compiles Qwen3 without biases, as all published ones are")
    if model_type == "qwen2_moe" and not config.flag("qkv_bias", True):
        raise config.error("qkv_bias is false; qwench compiles Qwen2 with these biases, as all published ones are")


def _head_dim(config: Fields, model_type: str, hidden: int, heads: int) -> int:
    """Where config.json doesn't give it, the hidden size is shared among heads, but those of a dense Qwen3 are of 128,
    as transformers has it."""
    if model_type == "qwen3":
        default = 128
    elif config.get("head_dim") is None and hidden % heads:
        raise config.error(f"hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads})")
    else:
        default = hidden // heads
    if (head_dim := config.positive("head_dim", default)) % 2:
        raise config.error(f"head_dim is {head_dim}; rotary embedding needs an even one")
    return head_dim


def _sliding_windows(config: Fields, model_type: str, layers: int) -> tuple[int | None, ...]:
    """As transformers: `layer_types` decides if given, else layers from `max_window_layers` on slide. Qwen3's mixtures
    slide in all layers."""
    window = None
    if config.flag("use_sliding_window") and config.get("sliding_window", 4096) is not None:
        window = config.positive("sliding_window", 4096)
    types = config.get("layer_types")
    if model_type == "qwen3_moe":
        return (window,) * layers
    if model_type == "qwen2_moe" and window and types is None:
        raise config.error("use_sliding_window is true, but layer_types doesn't say which layers slide")
    if types is None:
        first = config.get("max_window_layers", 28)
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise config.error(f"max_window_layers must be an integer of at least 0, but is {first!r}")
        return tuple(window if i >= first else None for i in range(layers))
    allowed = ("full_attention", "sliding_attention")
    if not isinstance(types, list) or len(types) != layers or any(t not in allowed for t in types):
        raise config.error(f"layer_types must list {layers} of {allowed}, but is {types!r}")
    if window is None and "sliding_attention" in types:
        raise config.error("layer_types has sliding_attention layers, but use_sliding_window gives no window")
    return tuple(window if t == "sliding_attention" else None for t in types)


def _rope(config: Fields, head_dim: int, positions: int) -> RopeSpec:
    """Both spellings: `rope_theta` with `rope_scaling`, and the newer `rope_parameters`."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(scaling, dict):
        raise config.error(f"rope_scaling must be an object, but is {scaling!r}")
    nested = [v for k, v in scaling.items() if k in ("full_attention", "sliding_attention") and v is not None]
    if nested:
        if any(v != nested[0] for v in nested) or not isinstance(nested[0], dict):
            raise config.error("rope_parameters differ between layer types; qwench needs one for all layers")
        scaling = nested[0]
    fields = Fields({"partial_rotary_factor": config.get("partial_rotary_factor"), **scaling}, config.where)
    theta = fields.number("rope_theta", config.number("rope_theta", 10000.0))
    original = None
    if config.get("original_max_position_embeddings") is not None:
        original = config.number("original_max_position_embeddings")
    return read_rope(fields, theta, head_dim, positions, original)
