"""The Hugging Face face of qwench, and the only package that imports torch and transformers.

`model.py` is QwenchForCausalLM, `heads.py` are those that don't generate, `base.py` is what they share; `loading.py`
finds or compiles an artifact, `cache.py` is its `past_key_values`, `inputs.py` says which tokens of a padded batch are
real, `forward.py` and `steps.py` run them, `native.py` hands whole generations to the engine, `original.py` runs
transformers' own model to compare with, and `transformers_seam.py` is all that the package knows of transformers'
inside.
"""

try:
    from qwench.modeling.cache import QwenchCache
    from qwench.modeling.heads import QwenchForSequenceClassification, QwenchForTokenClassification, QwenchModel
    from qwench.modeling.model import QwenchForCausalLM
    from qwench.modeling.transformers_seam import warn_if_untested
except ModuleNotFoundError as error:
    if error.name not in ("torch", "transformers"):
        raise
    message = f'qwench.modeling needs {error.name}, which isn\'t installed: pip install "qwench[hf]"'
    raise ModuleNotFoundError(message, name=error.name) from None

warn_if_untested()

__all__ = [
    "QwenchCache",
    "QwenchForCausalLM",
    "QwenchForSequenceClassification",
    "QwenchForTokenClassification",
    "QwenchModel",
]
