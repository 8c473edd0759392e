"""The mixture of experts in a config.json -> ExpertsSpec: which layers have experts, how many, and how they are chosen.

Knows nothing of tensors. Called by spec.py; names and defaults are transformers'.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwench.checkpoint.fields import LARGEST_SIZE, Fields
from qwench.errors import CheckpointError

MOST_EXPERTS = 1024


@dataclass(frozen=True)
class ExpertsSpec:
    """The experts of each of `layers`, the others being dense.

    top_k: experts that a token chooses. intermediate_size: of one expert. shared_intermediate_size: of the expert that
    every token has besides, by a gate of its own; 0: there is none. normalizes: the weights of the chosen ones are
    divided by their sum.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    shared_intermediate_size: int
    normalizes: bool
    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raises CheckpointError for an impossible shape: kernels rely on this, wherever the spec comes from."""
        if not 1 <= self.top_k <= self.num_experts <= MOST_EXPERTS:
            raise CheckpointError(
                f"a token chooses {self.top_k} of {self.num_experts} experts; it must be from 1 to all of them, and "
                f"there may be {MOST_EXPERTS}"
            )
        if not (0 < self.intermediate_size <= LARGEST_SIZE and 0 <= self.shared_intermediate_size <= LARGEST_SIZE):
            raise CheckpointError(
                f"experts have an intermediate size of {self.intermediate_size}, the shared one of "
                f"{self.shared_intermediate_size}"
            )

    @property
    def routes_width(self) -> int:
        """Numbers that say where a token goes: its experts, their weights, and the shared expert's."""
        return 2 * self.top_k + bool(self.shared_intermediate_size)


@dataclass(frozen=True)
class _Defaults:
    """What transformers takes for a config.json that doesn't say."""

    num_experts: int
    top_k: int
    intermediate_size: int
    shared_intermediate_size: int


# The model_types that are mixtures.
MIXTURES = {"qwen2_moe": _Defaults(60, 4, 1408, 5632), "qwen3_moe": _Defaults(128, 8, 768, 0)}


def read_experts(config: Fields, model_type: str, num_layers: int) -> ExpertsSpec | None:
    """None for a model_type that has no experts. Raises the error of `config`."""
    defaults = MIXTURES.get(model_type)
    if defaults is None:
        return None
    # transformers 5 writes the number of Qwen3's as num_local_experts.
    num_experts = config.positive("num_experts", config.positive("num_local_experts", defaults.num_experts))
    shared = defaults.shared_intermediate_size
    if (top_k := config.positive("num_experts_per_tok", defaults.top_k)) > num_experts:
        raise config.error(f"num_experts_per_tok is {top_k}, but there are {num_experts} experts")
    return ExpertsSpec(
        num_experts,
        top_k,
        config.positive("moe_intermediate_size", defaults.intermediate_size),
        config.positive("shared_expert_intermediate_size", shared) if shared else 0,
        config.flag("norm_topk_prob"),
        _layers(config, num_layers),
    )


def _layers(config: Fields, num_layers: int) -> tuple[int, ...]:
    """Every `decoder_sparse_step`th layer, but for `mlp_only_layers`."""
    step, dense = config.positive("decoder_sparse_step", 1), config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(type(layer) is not int for layer in dense):
        raise config.error(f"mlp_only_layers must be a list of layers, but is {dense!r}")
    return tuple(i for i in range(num_layers) if (i + 1) % step == 0 and i not in dense)
