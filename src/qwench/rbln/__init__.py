"""Optimum RBLN's names, so that code written for it runs here with one changed import: docs/rbln.md.

`config.py` has the options and their strict rules, `lora.py` those of adapters, `memory.py` how many cache blocks there
are, `model.py` the classes.
"""

import qwench.modeling  # noqa: F401  first, as it says what to install where torch isn't
from qwench.rbln.config import (
    RBLNDecoderOnlyModelConfig,
    RBLNDecoderOnlyModelForCausalLMConfig,
    RBLNQwen2ForCausalLMConfig,
    RBLNQwen2ModelConfig,
)
from qwench.rbln.lora import RBLNLoRAAdapterConfig, RBLNLoRAConfig
from qwench.rbln.model import (
    RBLNDecoderOnlyModel,
    RBLNDecoderOnlyModelForCausalLM,
    RBLNQwen2ForCausalLM,
    RBLNQwen2Model,
)

__all__ = [
    "RBLNDecoderOnlyModel",
    "RBLNDecoderOnlyModelConfig",
    "RBLNDecoderOnlyModelForCausalLM",
    "RBLNDecoderOnlyModelForCausalLMConfig",
    "RBLNLoRAAdapterConfig",
    "RBLNLoRAConfig",
    "RBLNQwen2ForCausalLM",
    "RBLNQwen2ForCausalLMConfig",
    "RBLNQwen2Model",
    "RBLNQwen2ModelConfig",
]
