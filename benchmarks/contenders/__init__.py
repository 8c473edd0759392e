"""The contenders: one module each, which drives one library. They run inside a worker, with their own interpreter."""

from __future__ import annotations

import importlib

from benchmarks.contenders.contender import Contender

# Name -> module and class. Imported only in the worker that needs it: its library may be absent here.
CONTENDERS = {
    "qwench": ("qwench_engine", "QwenchContender"),
    "llama.cpp": ("llama_cpp_api", "LlamaCppContender"),
    "openvino": ("openvino_genai", "OpenVinoContender"),
    "transformers": ("hf_transformers", "TransformersContender"),
}


def make_contender(name: str) -> Contender:
    """The contender called `name`, which must be a key of CONTENDERS. Imports none of its library yet."""
    module, class_name = CONTENDERS[name]
    contender: Contender = getattr(importlib.import_module(f"benchmarks.contenders.{module}"), class_name)()
    return contender
