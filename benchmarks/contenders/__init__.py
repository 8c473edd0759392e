"""The contenders: one module each, which drives one library or binary.

They run inside a worker, with their own interpreter.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from benchmarks.contenders.contender import Contender

IK_LLAMA = "ik_llama.cpp"

# Name -> module and class. Imported only in the worker that needs it: its library may be absent here.
CONTENDERS = {
    "qwench": ("qwench_engine", "QwenchContender"),
    "llama.cpp": ("llama_cpp_api", "LlamaCppContender"),
    IK_LLAMA: ("ik_llama_bench", "IkLlamaContender"),
    "openvino": ("openvino_genai", "OpenVinoContender"),
    "transformers": ("hf_transformers", "TransformersContender"),
}


def make_contender(name: str, program: str | None = None) -> Contender:
    """The contender called `name`, which must be a key of CONTENDERS. Imports none of its library yet.

    program: the binary that it runs, if it is one that does.
    """
    module, class_name = CONTENDERS[name]
    contender: Contender = getattr(importlib.import_module(f"benchmarks.contenders.{module}"), class_name)()
    if program is not None:
        contender.program = Path(program)
    return contender
