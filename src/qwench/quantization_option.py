"""The option `quantization` of QwenchConfig: weights, activations, KV cache and group size as one dict, in the words
of Optimum RBLN. Knows no other option.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwench.errors import ConfigError
from qwench.formats import FLOAT_ACTIVATIONS, INTEGER_ACTIVATIONS, WEIGHT_KINDS
from qwench.option_checks import check_choice
from qwench.targets.target import KV_CACHE_DTYPES

KEYS = ("format", "weights", "activations", "kv_caches", "group_size")


def options_of(quantization: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of QwenchConfig that Optimum RBLN's `quantization` sets. Raises ConfigError for what isn't available.

    Optimum RBLN runs checkpoints that are quantised already; here bf16 ones are quantised when they are compiled.
    """
    if quantization is None:
        return {}
    if not isinstance(quantization, Mapping):
        raise ConfigError(f"quantization is {quantization!r}; give a dict of {', '.join(KEYS)}")
    if unknown := sorted(set(quantization) - set(KEYS)):
        raise ConfigError(f"quantization has {unknown[0]!r}; there are: {', '.join(KEYS)}")
    given = {name: value for name, value in quantization.items() if value is not None}
    check_choice("format of quantization", given.get("format"), ("qwench", "rbln"))
    weights = given.get("weights")
    if weights is None:
        raise ConfigError(f"quantization {dict(quantization)!r} doesn't say weights; allowed: int8, int4, bf16")
    check_choice("weights of quantization", weights, WEIGHT_KINDS)
    check_choice("kv_caches of quantization", given.get("kv_caches"), KV_CACHE_DTYPES)
    activations = given.get("activations")
    allowed = FLOAT_ACTIVATIONS if weights == "bf16" else INTEGER_ACTIVATIONS
    if activations not in (None, *allowed):
        raise ConfigError(
            f"activations of quantization is {activations!r} with weights {weights!r}, which are multiplied by "
            f"{' or '.join(allowed)} activations (integers with one scale per token and group)"
        )
    fields = {
        "weights": weights,
        "activations": activations,
        "kv_cache": given.get("kv_caches"),
        "group_size": given.get("group_size"),
    }
    return {name: value for name, value in fields.items() if value is not None}
