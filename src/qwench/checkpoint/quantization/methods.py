"""`quantization_config` of a config.json -> the Method that reads its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from qwench.checkpoint.fields import Fields
from qwench.checkpoint.quantization.awq import Awq
from qwench.checkpoint.quantization.compressed_tensors import CompressedTensors
from qwench.checkpoint.quantization.fp8 import Fp8
from qwench.checkpoint.quantization.gptq import Gptq
from qwench.checkpoint.quantization.method import Method, Read
from qwench.safetensors_file import TensorEntry

METHODS: Mapping[str, type[Gptq] | type[Awq] | type[CompressedTensors] | type[Fp8]] = {
    "gptq": Gptq, "awq": Awq, "compressed-tensors": CompressedTensors, "fp8": Fp8, "fbgemm_fp8": Fp8,
}  # fmt: skip
AUTO_ROUND = ("auto-round", "intel/auto-round")  # saves in the layouts of others
# packing_format -> method and checkpoint_format. Only what is called (auto_)gptq stores zero points less 1:
# auto_round/inference/backend.py of github.com/intel/auto-round.
PACKINGS: Mapping[str, tuple[str, str]] = {
    "auto_round:auto_gptq": ("gptq", "gptq"), "auto_round:gptq": ("gptq", "gptq"), "auto_round": ("gptq", "gptq_v2"),
    "auto_round:gptqmodel": ("gptq", "gptq_v2"), "auto_round:auto_awq": ("awq", ""), "auto_round:awq": ("awq", ""),
}  # fmt: skip
# What has the model do more than multiply by the matrices: rotate their inputs, add an adapter's part.
MORE_THAN_MATRICES = ("transform_config", "rotation", "rotation_config", "adapter")


def find_method(config: Fields, entries: Mapping[str, TensorEntry], read: Read) -> Method:
    """Raises the error of `config`, which names what is read, for a method or a variety that isn't."""
    name = config.get("quant_method")
    if name in AUTO_ROUND:
        name, config = _as_its_layout(config)
    if not isinstance(name, str) or name not in METHODS:
        told = "it doesn't say its quant_method, as MLX's don't" if name is None else f"it is quantised with {name!r}"
        raise config.error(f"{told}; read are {', '.join(METHODS)}, and auto-round in their layouts")
    for key in MORE_THAN_MATRICES:
        if config.get(key):
            raise config.error(f"{key} has the model compute more than products with its matrices, which isn't read")
    return METHODS[name](config, entries, read)


def _as_its_layout(config: Fields) -> tuple[str, Fields]:
    """The method whose layout auto-round used, and the config as that method would write it."""
    packing = config.get("packing_format", "auto_round:auto_gptq")
    found = PACKINGS.get(":".join(packing.split(":")[:2])) if isinstance(packing, str) else None  # without its kernel
    if found is None:
        raise config.error(f"packing_format is {packing!r}; of auto-round {', '.join(PACKINGS)} are read")
    return found[0], Fields({**config.values, "checkpoint_format": found[1]}, config.where)
