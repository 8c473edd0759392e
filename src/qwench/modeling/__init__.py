"""QwenchForCausalLM: the Hugging Face face of qwench, and the only package that imports torch and transformers.

`model.py` is the class, `loading.py` finds or compiles its artifact, `cache.py` is its `past_key_values`, `inputs.py`
says which tokens of a padded batch are real, `forward.py` and `steps.py` run them, `native.py` hands whole generations
to the engine, `original.py` runs transformers' own model to compare with.
"""

from qwench.modeling.cache import QwenchCache
from qwench.modeling.model import QwenchForCausalLM

__all__ = ["QwenchCache", "QwenchForCausalLM"]
