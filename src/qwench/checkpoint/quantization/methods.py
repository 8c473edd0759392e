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


def find_method(config: Fields, entries: Mapping[str, TensorEntry], read: Read) -> Method:
    """Raises the error of `config`, which names what is read, for a method or a variety that isn't."""
    name = config.get("quant_method")
    if name in AUTO_ROUND:
        packing = str(config.get("packing_format", ""))
        name = next((layout for layout in ("gptq", "awq") if layout in packing), f"{name} with {packing!r}")
    if not isinstance(name, str) or name not in METHODS:
        raise config.error(
            f"it is quantised with {name!r}; read are {', '.join(METHODS)}, and auto-round in their layouts"
        )
    return METHODS[name](config, entries, read)
