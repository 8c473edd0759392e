"""qwench: compile a Qwen2 checkpoint once for the machine it is on, run it at the speed of that machine.

Names are imported on first use, so that `import qwench` costs nothing and the core never needs torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "LLM": "qwench.llm",
    "AsyncLLM": "qwench.async_llm",
    "Grammar": "qwench.runtime.structured_output.grammar",
    "SamplingParams": "qwench.runtime.sampling.sampling_params",
    "RequestOutput": "qwench.text.generation",
    "QwenchConfig": "qwench.config",
    "QwenchForCausalLM": "qwench.modeling",
    "QwenchForSequenceClassification": "qwench.modeling",
    "QwenchForTokenClassification": "qwench.modeling",
    "QwenchModel": "qwench.modeling",
    "compile_checkpoint": "qwench.compiler.compiler",
    "QwenchError": "qwench.errors",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "Grammar",
    "QwenchConfig",
    "QwenchError",
    "QwenchForCausalLM",
    "QwenchForSequenceClassification",
    "QwenchForTokenClassification",
    "QwenchModel",
    "RequestOutput",
    "SamplingParams",
    "compile_checkpoint",
]

if TYPE_CHECKING:
    from qwench.async_llm import AsyncLLM
    from qwench.compiler.compiler import compile_checkpoint
    from qwench.config import QwenchConfig
    from qwench.errors import QwenchError
    from qwench.llm import LLM
    from qwench.modeling import (
        QwenchForCausalLM,
        QwenchForSequenceClassification,
        QwenchForTokenClassification,
        QwenchModel,
    )
    from qwench.runtime.sampling.sampling_params import SamplingParams
    from qwench.runtime.structured_output.grammar import Grammar
    from qwench.text.generation import RequestOutput


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'qwench' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
