"""RopeSpec: the rotary position embedding of a model, and its reading from `rope_scaling` or `rope_parameters`.

All types that transformers computes for Qwen2. Types whose frequencies depend on the current sequence length in
transformers (dynamic, longrope) depend here on the length that the model is compiled for: `RopeSpec.for_length`.
program/rope.py computes the frequencies. Called by spec.py, and by QwenchConfig for its option.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwench.checkpoint.fields import Fields
from qwench.errors import ConfigError

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
TYPES_BY_LENGTH = ("dynamic", "longrope")


@dataclass(frozen=True)
class RopeSpec:
    """Base `theta`, the type of scaling, and the parameters that the type needs.

    Of them, `original_max_position_embeddings` is the length that the model was trained for before scaling, `seq_len`
    the length that it is compiled for. short_factors, long_factors: [head_dim / 2] of longrope.
    """

    theta: float
    rope_type: str = "default"
    parameters: Mapping[str, float] = dataclasses.field(default_factory=dict)
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    @property
    def depends_on_length(self) -> bool:
        """Whether transformers rotates by the length of the sequence at hand, and qwench by the length compiled for."""
        return self.rope_type in TYPES_BY_LENGTH

    def for_length(self, seq_len: int) -> RopeSpec:
        """The same for a model whose sequences are up to `seq_len` tokens long."""
        if not self.depends_on_length:
            return self
        return dataclasses.replace(self, parameters={**self.parameters, "seq_len": float(seq_len)})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RopeSpec:
        """Inverse of `dataclasses.asdict`, by way of JSON too."""
        factors = {name: tuple(data.get(name, ())) for name in ("short_factors", "long_factors")}
        return cls(**{**data, **factors})


def parse_rope_scaling(value: object) -> dict[str, Any] | None:
    """The option: TYPE:FACTOR, a JSON object, or what has been read of one -> `rope_scaling` as in config.json.

    Raises ConfigError for what is neither; None is none.
    """
    if value is None:
        return None
    error = ConfigError(
        f"rope_scaling is {value!r}; it must be TYPE:FACTOR such as 'yarn:4', or a JSON object such as "
        '{"rope_type": "yarn", "factor": 4.0}'
    )
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            raise error from None
    if isinstance(value, str):
        rope_type, colon, factor = value.partition(":")
        try:
            return {"rope_type": rope_type} | ({"factor": float(factor)} if colon else {})
        except ValueError:
            raise error from None
    if not isinstance(value, Mapping) or not any(key in value for key in ("rope_type", "type")):
        raise error
    return dict(value)


def rope_type_of(scaling: Fields) -> str:
    """The type that `scaling` names, under either key. Raises the error of `scaling` for an unsupported one."""
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
        raise scaling.error(f"rope_type is {rope_type!r}; supported: {', '.join(ROPE_TYPES)}")
    return rope_type


def read_rope(scaling: Fields, theta: float, head_dim: int, positions: int, original: float | None) -> RopeSpec:
    """`scaling`: the fields of rope_scaling. positions: max_position_embeddings of the same config.

    original: the length before scaling where it is known apart from `scaling`, and then decides. Raises the error of
    `scaling` for what is missing or impossible.
    """
    rope_type = rope_type_of(scaling)
    if scaling.get("partial_rotary_factor") not in (1, None) and rope_type != "proportional":
        raise scaling.error("partial_rotary_factor other than 1 is not part of Qwen2, but for rope_type 'proportional'")
    if original is None:
        original = scaling.number("original_max_position_embeddings", float(positions))
    read = {"linear": _linear, "dynamic": _dynamic, "yarn": _yarn, "longrope": _longrope, "llama3": _llama3,
            "proportional": _proportional}.get(rope_type)  # fmt: skip
    parameters = read(scaling, positions, original) if read else {}
    spec = RopeSpec(theta, rope_type, parameters)
    if rope_type == "yarn" and theta <= 1:
        raise scaling.error(f"rope_theta is {theta:g}; yarn needs a larger one than 1")
    if rope_type == "dynamic" and head_dim <= 2:
        raise scaling.error(f"head_dim is {head_dim}; dynamic scaling needs a larger one than 2")
    if rope_type == "longrope":
        short, long = (scaling.numbers(name, head_dim // 2) for name in ("short_factor", "long_factor"))
        spec = dataclasses.replace(spec, short_factors=short, long_factors=long)
    return spec.for_length(positions)


def _linear(scaling: Fields, positions: int, original: float) -> dict[str, float]:
    return {"factor": scaling.number("factor")}


def _proportional(scaling: Fields, positions: int, original: float) -> dict[str, float]:
    share = scaling.number("partial_rotary_factor", 1.0)
    if share > 1:
        raise scaling.error(f"partial_rotary_factor must be at most 1, but is {share:g}")
    return {"factor": scaling.number("factor", 1.0), "partial_rotary_factor": share}


def _dynamic(scaling: Fields, positions: int, original: float) -> dict[str, float]:
    # transformers knows no other original length here than max_position_embeddings.
    return {"factor": scaling.number("factor"), "original_max_position_embeddings": float(positions)}


def _llama3(scaling: Fields, positions: int, original: float) -> dict[str, float]:
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if low >= high:
        raise scaling.error(f"high_freq_factor ({high:g}) must be above low_freq_factor ({low:g})")
    return {
        "original_max_position_embeddings": original,
        "factor": scaling.number("factor"),
        "low_freq_factor": low,
        "high_freq_factor": high,
    }


def _yarn(scaling: Fields, positions: int, original: float) -> dict[str, float]:
    parameters = {
        "original_max_position_embeddings": original,
        "factor": scaling.number("factor", positions / original),
        "beta_fast": scaling.number("beta_fast", 32.0),
        "beta_slow": scaling.number("beta_slow", 1.0),
        "truncate": float(scaling.flag("truncate", True)),
    }
    return parameters | _given(scaling, "attention_factor", "mscale", "mscale_all_dim")


def _longrope(scaling: Fields, positions: int, original: float) -> dict[str, float]:
    if original <= 1:
        raise scaling.error(f"original_max_position_embeddings is {original:g}; longrope needs more than 1")
    parameters = {
        "original_max_position_embeddings": original,
        "factor": scaling.number("factor", positions / original),
    }
    return parameters | _given(scaling, "attention_factor")


def _given(scaling: Fields, *keys: str) -> dict[str, float]:
    """Those of `keys` that are there; transformers takes a 0 of mscale as absent."""
    return {k: scaling.number(k) for k in keys if scaling.get(k) or (k == "attention_factor" and scaling.get(k) == 0)}
