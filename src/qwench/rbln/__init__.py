"""Optimum RBLN's names, so that code written for it runs here with one changed import: docs/rbln.md.

`config.py` has the options and their strict rules, `lora.py` those of adapters, `memory.py` how many cache blocks there
are, `model.py` the classes.
"""

from qwench.rbln.config import RBLNDecoderOnlyModelForCausalLMConfig, RBLNQwen2ForCausalLMConfig
from qwench.rbln.lora import RBLNLoRAAdapterConfig, RBLNLoRAConfig
from qwench.rbln.model import RBLNDecoderOnlyModelForCausalLM, RBLNQwen2ForCausalLM

__all__ = [
    "RBLNDecoderOnlyModelForCausalLM",
    "RBLNDecoderOnlyModelForCausalLMConfig",
    "RBLNLoRAAdapterConfig",
    "RBLNLoRAConfig",
    "RBLNQwen2ForCausalLM",
    "RBLNQwen2ForCausalLMConfig",
]
