"""Which matrix gets which format: named recipes, and patterns of checkpoint names that override them.

Knows names and formats, not how they are stored. Called by `config.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from qwench.checkpoint.spec import ModelSpec
from qwench.errors import ConfigError
from qwench.formats import GROUP_SIZES, WEIGHT_KINDS, Format
from qwench.program.models import build_program
from qwench.program.ops import Weight

Overrides = Mapping[str, str]


@dataclass(frozen=True)
class Recipe:
    """weights, head_weights, group_size, activations, kv_cache as the options of those names; overrides: pattern of
    checkpoint names -> format. docs/quantization.md says what each is for."""

    weights: str
    head_weights: str
    group_size: int
    overrides: Overrides = field(default_factory=dict)
    activations: str = "int8"
    kv_cache: str | None = None


RECIPES = {
    "accuracy": Recipe("int8", "int8", 32, activations="int16", kv_cache="fp32"),
    "balanced": Recipe("int4", "int8", 64, {"*.down_proj.weight": "int8"}),
    "speed": Recipe("int4", "int4", 128),
}


def check_overrides(overrides: object) -> None:
    """Raises ConfigError unless it maps texts to formats: int8, int4, bf16, or with a group size, as in int8/g64."""
    if not isinstance(overrides, Mapping):
        raise ConfigError(f"overrides is {overrides!r}; it must map patterns of weight names to formats")
    for pattern, text in overrides.items():
        if not isinstance(pattern, str) or not pattern:
            raise ConfigError(f"overrides has the pattern {pattern!r}; it must be a text such as '*.down_proj.weight'")
        try:
            sound = isinstance(text, str) and bool(parse_format(text, GROUP_SIZES[0]))
        except ConfigError:
            sound = False
        if not sound:
            raise ConfigError(
                f"overrides gives {pattern!r} the format {text!r}; allowed: {', '.join(WEIGHT_KINDS)}, and int8 or "
                f"int4 with /g{', /g'.join(map(str, GROUP_SIZES))}"
            )


def read_overrides(path: Path) -> dict[str, str]:
    """The JSON object in a file: pattern -> format, the last that matches counts. Raises ConfigError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the overrides {path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the overrides {path} are not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f'the overrides {path} must be a JSON object such as {{"*.down_proj.weight": "int8"}}')
    check_overrides(data)
    return data


def parse_format(text: str, group_size: int) -> Format:
    """A weight's format with its group size or, where it lacks one, with `group_size`. Raises ConfigError."""
    format = Format.parse(f"{text}/g{group_size}" if text in ("int8", "int4") else text)
    if format.kind not in WEIGHT_KINDS:
        raise ConfigError(f"{text!r} is no format of weights; allowed: {', '.join(WEIGHT_KINDS)}")
    return format


def check_matches(overrides: Overrides, spec: ModelSpec) -> None:
    """Raises ConfigError for a pattern that matches no matrix of the model."""
    names = [weight.name for weight in build_program(spec).weights.values() if not weight.is_vector]
    for pattern in overrides:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"overrides has the pattern {pattern!r}, which matches no matrix; there is {names[1]!r}")


def overridden(weight: Weight, overrides: Overrides, group_size: int) -> Format | None:
    """The format that `overrides` gives a weight, or None. Raises ConfigError if it gives several to a weight that is
    made of several tensors."""
    formats = {source: _last_match(source, overrides) for source in weight.sources}
    if len(set(formats.values())) > 1:
        told = ", ".join(f"{source} {text or 'none'}" for source, text in formats.items())
        raise ConfigError(
            f"overrides differ for tensors that are multiplied as one ({told}); give q, k and v one format, and gate "
            "and up"
        )
    text = next(iter(formats.values()))
    return None if text is None else parse_format(text, group_size)


def _last_match(name: str, overrides: Overrides) -> str | None:
    return next((text for pattern, text in reversed(list(overrides.items())) if fnmatchcase(name, pattern)), None)
